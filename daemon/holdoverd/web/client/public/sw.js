/*
 * Shows what the daemon pushes, and leads to the session it is about. It intercepts no request: pages
 * load as they would without it.
 */

// Apart from the page's strings: a worker outlives the pages, and loads nothing but itself.
const WORDS = {
  waiting: (text) => `Allow ${text || "a tool"}?`,
  question: () => "The agent asks you something.",
  finished: () => "The agent has finished.",
  failed: (text) => `The agent could not be started. ${text}`,
};

/** Of a session, at the question `request` where there is one. */
function addressOf(session, request = "") {
  const address = `/#/session/${encodeURIComponent(session)}`;
  return request === "" ? address : `${address}/ask/${encodeURIComponent(request)}`;
}

/** Is the page at this session, wherever in it? */
function isAt(page, session) {
  return `${page.url}/`.includes(`${addressOf(session)}/`);
}

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("push", (event) => {
  let message = {};
  try {
    message = event.data.json();
  } catch {
    // A push service may wake a worker without a message; browsers want something shown all the same.
  }
  const words = Object.hasOwn(WORDS, message.kind) ? WORDS[message.kind] : WORDS.finished;
  const session = typeof message.session === "string" ? message.session : "";
  const request = typeof message.request === "string" ? message.request : "";
  event.waitUntil(
    (async () => {
      const pages = await self.clients.matchAll({ type: "window" });
      if (session !== "" && pages.some((page) => page.focused && isAt(page, session))) return;
      await self.registration.showNotification(String(message.title || "Holdover"), {
        body: words(String(message.text ?? "")),
        // The newest of a session takes the place of what was shown of it.
        tag: session,
        renotify: session !== "",
        requireInteraction: message.kind === "waiting" || message.kind === "question",
        data: { session, request },
      });
    })(),
  );
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  const { session, request } = event.notification.data ?? {};
  const address = session ? addressOf(session, request) : "/";
  event.waitUntil(
    (async () => {
      const pages = await self.clients.matchAll({ type: "window" });
      const there = pages.find((page) => session && isAt(page, session)) ?? pages[0];
      if (there === undefined) return self.clients.openWindow(address);
      const page = await there.focus();
      // A change of the fragment alone loads nothing anew.
      if (session && !page.url.endsWith(address)) page.postMessage({ go: session, ask: request });
    })(),
  );
});
