/** Sends one file straight to storage, by URLs of its parts that the daemon signs. */

import { call } from "../http";
import { spanOf, typeOf, windowFrom, type Cut } from "../rules/parts";
import type { StoredFile } from "../wire";

const PARALLEL = 3;
const TRIES = 6;
/** The largest file whose digest is declared: WebCrypto wants all of it in memory. */
const DIGEST_BYTES = 16 * 1024 * 1024;

interface Part {
  number: number;
  method: string;
  url: string;
  headers: Record<string, string>;
}

interface Made {
  file: StoredFile;
  upload: { id: string; part_size: number; count: number; parts: Part[] };
}

/**
 * The file, ready. `moved` is told how many of its bytes are at storage, which may be fewer than
 * before when a part is sent again. Rejects with what went wrong, or when `signal` is aborted; the
 * upload has been given up then.
 */
export async function send(file: File, path: string, moved: (bytes: number) => void, signal: AbortSignal): Promise<StoredFile> {
  const sha256 = await digestOf(file);
  const made = await call<Made>("POST", "/v1/files", {
    name: file.name,
    path,
    size: file.size,
    ...(sha256 !== null && { sha256 }),
    ...(typeOf(file.type) !== undefined && { content_type: file.type }),
  });
  const upload = `/v1/uploads/${encodeURIComponent(made.upload.id)}`;
  try {
    await sendParts(file, upload, made, moved, signal);
    // Not from the answers to the parts: not every store shows ETags to pages.
    const { parts } = await call<{ parts: { number: number; etag: string }[] }>("GET", upload);
    const done = await call<{ file: StoredFile }>("POST", `${upload}/complete`, {
      parts: parts.map(({ number, etag }) => ({ number, etag })),
    });
    return done.file;
  } catch (error) {
    await call("DELETE", upload).catch(() => {});
    throw error;
  }
}

async function sendParts(file: File, upload: string, made: Made, moved: (bytes: number) => void, signal: AbortSignal): Promise<void> {
  const cut: Cut = { size: file.size, part_size: made.upload.part_size, count: made.upload.count };
  let urls = new Map(made.upload.parts.map((part) => [part.number, part]));
  const sent = new Set<number>();
  const under = new Map<number, number>(); // {part under way: bytes of it}
  let done = 0;
  let asking = Promise.resolve();

  const tell = (): void => moved([...under.values()].reduce((sum, bytes) => sum + bytes, done));
  // One at a time: the others then find theirs in the window that the first has got.
  const urlOf = (number: number): Promise<Part> => {
    const found = asking.then(async () => {
      if (!urls.has(number)) {
        const numbers = windowFrom(cut, number, sent);
        const { parts } = await call<{ parts: Part[] }>("POST", `${upload}/parts`, { numbers });
        urls = new Map(parts.map((part) => [part.number, part]));
      }
      const part = urls.get(number);
      if (part === undefined) throw new Error(`The server signed no URL for part ${number}.`);
      urls.delete(number);
      return part;
    });
    asking = found.then(
      () => {},
      () => {},
    );
    return found;
  };
  const sendOne = async (number: number): Promise<void> => {
    const [from, to] = spanOf(cut, number);
    for (let attempt = 1; ; attempt++) {
      try {
        await put(await urlOf(number), file.slice(from, to), signal, (bytes) => {
          under.set(number, bytes);
          tell();
        });
        break;
      } catch (error) {
        under.delete(number);
        tell();
        if (signal.aborted || attempt === TRIES) throw error;
        await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
      }
    }
    under.delete(number);
    sent.add(number);
    done += to - from;
    tell();
  };
  let next = 1;
  let failed = false;
  const lane = async (): Promise<void> => {
    while (next <= cut.count && !failed) {
      try {
        await sendOne(next++);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const lanes = await Promise.allSettled(Array.from({ length: Math.min(PARALLEL, cut.count) }, lane));
  for (const one of lanes) if (one.status === "rejected") throw one.reason;
}

function put(part: Part, bytes: Blob, signal: AbortSignal, moved: (bytes: number) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(new Error("It was stopped."));
    // Not fetch(), which tells nothing of how far it is.
    const request = new XMLHttpRequest();
    const stop = (): void => request.abort();
    signal.addEventListener("abort", stop, { once: true });
    const over = (): void => signal.removeEventListener("abort", stop);
    request.open(part.method, part.url);
    for (const [name, value] of Object.entries(part.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => moved(event.loaded);
    request.onload = () => {
      over();
      request.status < 300 ? resolve() : reject(new Error(`Storage answered ${request.status}.`));
    };
    request.onerror = () => {
      over();
      reject(new Error("The connection to storage broke."));
    };
    request.onabort = () => {
      over();
      reject(new Error("It was stopped."));
    };
    request.send(bytes);
  });
}

/** The SHA-256 of a small file, hex; null for others, and on plain http beyond this machine. */
async function digestOf(file: File): Promise<string | null> {
  if (file.size > DIGEST_BYTES || !isSecureContext) return null;
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
