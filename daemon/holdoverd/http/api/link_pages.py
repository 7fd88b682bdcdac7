"""The small pages behind links: a password, files to send, and what went wrong.

They work without anything else of the web client, and their Content-Security-Policy names what
they may do: the one script by its digest, requests to here and to storage.
"""

import base64
import hashlib
from html import escape

from holdoverd.errors import RequestError
from holdoverd.http.wire import Response

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:1.1rem/1.6 system-ui,sans-serif;max-width:38rem;margin:4rem auto;padding:0 1rem;"
    "overflow-wrap:anywhere}"
    "input,button{font:inherit;padding:.4rem .8rem;max-width:100%;box-sizing:border-box}"
    "label{display:block}li{margin:.8rem 0}progress{width:100%}.wrong{font-weight:bold}"
)

_SCRIPT = """
"use strict";
const pick = document.getElementById("files");
const list = document.getElementById("list");
const here = location.pathname.replace(/\\/$/, "");
let last = Promise.resolve();
pick.addEventListener("change", () => {
  for (const file of pick.files) {
    const row = document.createElement("li");
    const text = document.createElement("div");
    const bar = document.createElement("progress");
    bar.max = Math.max(1, file.size);
    bar.value = 0;
    bar.setAttribute("aria-label", file.name);
    text.textContent = file.name + ": waiting";
    row.append(text, bar);
    list.append(row);
    last = last.then(() => send(file, text, bar)).catch((error) => {
      text.textContent = file.name + ": " + error.message;
    });
  }
  pick.value = "";
});
async function ask(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(here + path, options);
  const data = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(data.error.message);
  return data;
}
function put(part, bytes, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(part.method, part.url);
    for (const [name, value] of Object.entries(part.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onload = () =>
      request.status < 300 ? resolve() : reject(new Error("storage answered " + request.status));
    request.onerror = () => reject(new Error("the connection to storage broke"));
    request.send(bytes);
  });
}
async function send(file, text, bar) {
  text.textContent = file.name + ": sending";
  const asked = { name: file.name, size: file.size };
  if (/^[\\w.+-]+\\/[\\w.+-]+$/.test(file.type)) asked.content_type = file.type;
  const { upload } = await ask("POST", "", asked);
  const path = "/uploads/" + upload.id;
  try {
    const urls = new Map(upload.parts.map((part) => [part.number, part]));
    for (let number = 1; number <= upload.count; number++) {
      const from = (number - 1) * upload.part_size;
      const bytes = file.slice(from, Math.min(file.size, from + upload.part_size));
      for (let attempt = 1; ; attempt++) {
        try {
          if (!urls.has(number)) {
            const numbers = [];
            for (let n = number; n <= upload.count && numbers.length < 64; n++) numbers.push(n);
            for (const part of (await ask("POST", path + "/parts", { numbers })).parts)
              urls.set(part.number, part);
          }
          await put(urls.get(number), bytes, (loaded) => { bar.value = from + loaded; });
          break;
        } catch (error) {
          if (attempt === 6) throw error;
          urls.clear();
          await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** attempt));
        }
      }
    }
    const { parts } = await ask("GET", path);
    await ask("POST", path + "/complete", {
      parts: parts.map(({ number, etag }) => ({ number, etag })),
    });
    bar.value = bar.max;
    text.textContent = file.name + ": sent";
  } catch (error) {
    await ask("DELETE", path).catch(() => {});
    throw error;
  }
}
"""


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _page(
    title: str,
    main: str,
    *,
    status: int,
    policy: str,
    script: str = "",
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    ending = f"<script>{script}</script>\n" if script else ""
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{main}
</main>
{ending}</body>
</html>
"""
    return Response(
        status,
        text.encode(),
        (
            ("Content-Type", "text/html; charset=utf-8"),
            ("X-Content-Type-Options", "nosniff"),
            # The address holds the link's token. It has to stay among ourselves, but with
            # `no-referrer` a form would be sent with `Origin: null`, which the doors refuse.
            ("Referrer-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
            (
                "Content-Security-Policy",
                f"default-src 'none'; style-src '{_digest(_STYLE)}'; base-uri 'none';"
                f" frame-ancestors 'none'; {policy}",
            ),
            *headers,
        ),
    )


def password_page(name: str, storage: str, wrong: str = "") -> Response:
    """Asks for a link's password. `storage`: the origin that the download is redirected to."""
    said = f'<p class="wrong" role="alert">{escape(wrong)}</p>\n' if wrong else ""
    return _page(
        f"{name} – Holdover",
        f"""<h1>{escape(name)}</h1>
<p>This file was shared with you, with a password.</p>
{said}<form method="post">
<label for="password">Password</label>
<input id="password" name="password" type="password" maxlength="200" required autofocus
 autocomplete="off">
<button>Download</button>
</form>""",
        status=403 if wrong else 200,
        # Browsers hold a form's redirect to this as well.
        policy=f"form-action 'self' {storage}",
    )


def upload_page(left: int, storage: str) -> Response:
    """Takes files and sends them to storage; `left` bytes may still come."""
    return _page(
        "Send files – Holdover",
        f"""<h1>Send files</h1>
<p>Whoever gave you this address gets the files that you choose here: up to {_size(left)} in all.</p>
<label for="files">Files</label>
<input id="files" type="file" multiple>
<ul id="list" aria-live="polite"></ul>
<noscript><p>This page needs JavaScript; programs send <code>POST</code> to this address.</p></noscript>""",
        status=200,
        policy=f"form-action 'none'; script-src '{_digest(_SCRIPT)}'; connect-src 'self' {storage}",
        script=_SCRIPT,
    )


def sorry_page(error: RequestError) -> Response:
    """An error in words."""
    return _page(
        "Not available – Holdover",
        f"<h1>Not available</h1>\n<p>{escape(error.message)}</p>",
        status=error.status,
        policy="form-action 'none'",
        headers=tuple(error.headers.items()),
    )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
