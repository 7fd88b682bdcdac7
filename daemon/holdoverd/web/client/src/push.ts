/** Being told, on this device, that an agent waits or has finished: the browser's side of it. */

import { call } from "./http";
import { go } from "./router";
import { recall, remember } from "./session/store";

/** `unsupported`: by this browser, or because the page came neither over TLS nor from this machine. */
export type PushState = "unsupported" | "denied" | "off" | "on";

const WORKER = "/sw.js";

/** How often it was turned off on this page: whatever was being turned on then is not wanted any more. */
let turnedOff = 0;

/** Made once: a page may make only one of a name. */
let policy: ReturnType<Policies["createPolicy"]> | null = null;

export async function pushState(): Promise<PushState> {
  if (!("serviceWorker" in navigator) || !("PushManager" in window) || !("Notification" in window)) return "unsupported";
  if (Notification.permission === "denied") return "denied";
  return recall<string>("push") !== null && Notification.permission === "granted" ? "on" : "off";
}

/** Is this device told of what others share, too? */
export function pushShared(): boolean {
  return recall<boolean>("push-shared") === true;
}

/**
 * `shared`: also of sessions that others share with everyone to write. Throws what went wrong. Call
 * it from a click: browsers ask for leave then only.
 */
export async function turnOn(shared = pushShared()): Promise<PushState> {
  const began = turnedOff;
  if ((await Notification.requestPermission()) !== "granted") return pushState();
  const { public_key } = await call<{ public_key: string }>("GET", "/v1/push");
  const registration = await navigator.serviceWorker.register(workerAddress());
  await navigator.serviceWorker.ready;
  const known = await registration.pushManager.getSubscription();
  // One that was made for another server's key is worth nothing here.
  if (known !== null && keyOf(known) !== public_key) await known.unsubscribe();
  const made = await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: public_key });
  const { endpoint, keys } = made.toJSON();
  const { id } = await call<{ id: string }>("POST", "/v1/push", { endpoint, keys, shared });
  if (turnedOff !== began) {
    // A page renews it when it is opened, which takes a while.
    await forget(made, id);
    return "off";
  }
  remember("push", id);
  remember("push-shared", shared || null);
  return "on";
}

export async function turnOff(): Promise<PushState> {
  turnedOff += 1;
  const id = recall<string>("push");
  remember("push", null);
  const registration = await navigator.serviceWorker.getRegistration();
  await forget(await registration?.pushManager.getSubscription(), id);
  return "off";
}

async function forget(made: PushSubscription | null | undefined, id: string | null): Promise<void> {
  if (id !== null) await call("DELETE", `/v1/push/${encodeURIComponent(id)}`).catch(() => {});
  await made?.unsubscribe();
}

/** Once somebody is logged in: subscriptions end with the login that made them, so make it anew. */
export function renewPush(): void {
  if (!("serviceWorker" in navigator)) return;
  navigator.serviceWorker.onmessage = (event: MessageEvent<{ go?: string; ask?: string }>) => {
    const { go: session, ask } = event.data;
    if (typeof session === "string") go(`/session/${encodeURIComponent(session)}${ask ? `/ask/${encodeURIComponent(ask)}` : ""}`);
  };
  void pushState().then((state) => {
    if (state === "on") turnOn().catch((error: unknown) => console.warn("holdover: no notifications,", error));
  });
}

interface Policies {
  createPolicy(name: string, rules: { createScriptURL: () => string }): { createScriptURL(url: string): unknown };
}

/** Where the worker is, in the wrapping that the page's policy asks for where a browser knows it. */
function workerAddress(): string {
  const policies = (window as { trustedTypes?: Policies }).trustedTypes;
  policy ??= policies?.createPolicy("worker", { createScriptURL: () => WORKER }) ?? null;
  return (policy?.createScriptURL("") ?? WORKER) as string;
}

function keyOf({ options }: PushSubscription): string {
  const bytes = new Uint8Array(options.applicationServerKey ?? new ArrayBuffer(0));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
