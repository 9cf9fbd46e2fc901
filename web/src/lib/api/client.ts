/** One way to call the gateway: JSON in, JSON out, errors as ApiError with the server's Status. */

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

/** Calls the gateway. Throws ApiError; an aborted call throws the signal's reason. */
export async function call<T>(
  method: "GET" | "POST",
  path: string,
  body?: unknown,
  signal?: AbortSignal,
): Promise<T> {
  const response = await send(path, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    ...(signal ? { signal } : {}),
  });
  return (await response.json()) as T;
}

/** Fetches bytes, such as a blob. Throws ApiError. */
export async function bytes(path: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  return await (await send(path, signal ? { signal } : {})).arrayBuffer();
}

/** A query string with repeated keys for arrays; empty values are left out. */
export function query(values: Record<string, string | number | readonly string[] | undefined>): string {
  const found = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== "") found.append(key, String(one));
    }
  }
  const text = found.toString();
  return text ? `?${text}` : "";
}

async function send(path: string, init: RequestInit): Promise<Response> {
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
