/** One request to the gateway, and what the server or the network says where it fails. */

import { connection } from "./connection.svelte";

export interface StatusDetail {
  "@type"?: string;
  reason?: string;
  metadata?: Record<string, string>;
  fieldViolations?: { field?: string; description?: string }[];
  [key: string]: unknown;
}

/** What the server, or the network, says about a call that failed. */
export class ApiError extends Error {
  constructor(
    message: string,
    /** HTTP status; 0 where no answer came. */
    readonly status: number,
    /** google.rpc.Code; 14 (UNAVAILABLE) where no answer came. */
    readonly code: number = 2,
    readonly details: readonly StatusDetail[] = [],
  ) {
    super(message);
    this.name = "ApiError";
  }

  /** Machine-readable reason of an ErrorInfo, such as HEAD_MOVED. */
  get reason(): string {
    return this.details.find((one) => one.reason)?.reason ?? "";
  }

  /** Metadata of the ErrorInfo. */
  get metadata(): Record<string, string> {
    return this.details.find((one) => one.reason)?.metadata ?? {};
  }

  /** True where the gateway could not be reached: edits are kept and the call may be repeated. */
  get offline(): boolean {
    return this.status === 0;
  }
}

/** Returns whether a call was refused because nobody is logged in. */
export function isUnauthenticated(error: unknown): error is ApiError {
  return error instanceof ApiError && error.status === 401;
}

/** Sends one request. Throws ApiError; an aborted one throws the signal's reason. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...init });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    connection.lost();
    throw new ApiError("The gateway does not answer.", 0, 14);
  }
  connection.found();
  if (!response.ok) throw await toError(response);
  return response;
}

async function toError(response: Response): Promise<ApiError> {
  try {
    const status = (await response.json()) as { code?: number; message?: string; details?: StatusDetail[] };
    return new ApiError(status.message || response.statusText, response.status, status.code, status.details);
  } catch {
    return new ApiError(`The gateway answered ${response.status}.`, response.status);
  }
}
