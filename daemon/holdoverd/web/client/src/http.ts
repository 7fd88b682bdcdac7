/** Requests to the daemon that sent this page. Its cookie says who asks. */

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly detail: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

/** The daemon could not be reached; the same request may be sent again. */
export class Unreachable extends Error {}

let onLoggedOut: () => void = () => {};

/** `callback` is called whenever the daemon says that nobody is logged in. */
export function whenLoggedOut(callback: () => void): void {
  onLoggedOut = callback;
}

/** The JSON of a successful answer, null where it has no body. Throws ApiError or Unreachable. */
export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch (error) {
    throw new Unreachable(String(error));
  }
  let answer: unknown = null;
  try {
    const text = await response.text();
    answer = text === "" ? null : JSON.parse(text);
  } catch (error) {
    // A connection that broke in mid-answer, or a proxy's page in place of the daemon's.
    throw new Unreachable(String(error));
  }
  if (response.ok) return answer as T;
  const error = (answer as { error?: { code?: string; message?: string } } | null)?.error;
  if (response.status === 401 && path !== "/login") onLoggedOut();
  // A proxy says so while the daemon behind it is away.
  if (error === undefined && response.status >= 502) throw new Unreachable(`status ${response.status}`);
  throw new ApiError(
    response.status,
    error?.code ?? "internal",
    error?.message ?? `The server answered ${response.status}.`,
    error as Record<string, unknown>,
  );
}

/** A random UUID; `crypto.randomUUID` is missing on plain http beyond this machine. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/** What an error says to people. */
export function said(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
