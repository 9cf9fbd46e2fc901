/** One way to call the gateway: JSON in, JSON out, errors as ApiError with the server's Status. */

import { session } from "../session.svelte";
import { isUnauthenticated, request } from "./http";

export { ApiError, type StatusDetail } from "./http";

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

/** Sends a request; where nobody is logged in any more it waits for the login, then sends it again. */
async function send(path: string, init: RequestInit): Promise<Response> {
  for (;;) {
    const seen = session.logins;
    try {
      return await request(path, init);
    } catch (error) {
      if (!isUnauthenticated(error)) throw error;
      await session.renewed(error, seen, init.signal);
    }
  }
}
