import { render } from "preact";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { ApiError, call, said, whenLoggedOut } from "./http";
import { LoginPage } from "./pages/login";
import { PAGES } from "./pages/registry";
import { pushState, renewPush, turnOff } from "./push";
import { useRoute } from "./router";
import { recall, remember } from "./session/store";
import { strings } from "./strings";
import "./style.css";

type Login = "unknown" | "in" | "out";

function App() {
  // Who was logged in here last most likely still is: nothing waits to hear so. If not, the first
  // request tells.
  const [login, setLogin] = useState<Login>(() => (recall("known") === true && codeOf() === null ? "in" : "unknown"));
  const [trouble, setTrouble] = useState<string | null>(null);
  const parts = useRoute();
  const page = PAGES.find(({ name }) => name === (parts[0] ?? "")) ?? PAGES[0]!;
  const bare = page.name === "session";
  const admin = useAdmin(login, bare);
  useEffect(() => {
    if (login !== "unknown") remember("known", login === "in" ? true : null);
    if (login === "in") renewPush();
  }, [login]);
  useLayoutEffect(() => {
    whenLoggedOut(() => setLogin("out"));
    if (login === "unknown") void enter(setLogin, setTrouble);
  }, []);
  if (login === "unknown") return <p class="opening">{trouble ?? strings.opening}</p>;
  if (login === "out") {
    return (
      <LoginPage
        trouble={trouble}
        done={() => {
          setTrouble(null);
          setLogin("in");
        }}
      />
    );
  }
  const Page = page.view;
  return (
    <>
      {!bare && (
        <nav aria-label={strings.pages}>
          <a class="brand" href="#/">
            Holdover
          </a>
          {PAGES.filter((page) => page.label !== null && (admin || page.admin !== true)).map(({ name, label }) => (
            <a key={name} href={`#/${name}`} aria-current={name === page.name ? "page" : undefined}>
              {label}
            </a>
          ))}
          <button
            type="button"
            class="link"
            onClick={() => void logOut().then(() => setLogin("out"), () => {})}
          >
            {strings.logOut}
          </button>
        </nav>
      )}
      <Page parts={parts.slice(1)} />
    </>
  );
}

/** What this device was told for whoever logs out is not for whoever comes next. */
async function logOut(): Promise<void> {
  if ((await pushState()) === "on") await turnOff().catch(() => {});
  await call("DELETE", "/login");
}

/** May whoever is logged in do everything? The door itself says so, asked where it is first shown. */
function useAdmin(login: Login, bare: boolean): boolean {
  const [admin, setAdmin] = useState<boolean | null>(null);
  const unasked = admin === null && !bare;
  useEffect(() => {
    if (login !== "in") setAdmin(null);
  }, [login]);
  useEffect(() => {
    if (login !== "in" || !unasked) return;
    let current = true;
    call("GET", "/v1/tokens?limit=1").then(
      () => current && setAdmin(true),
      (error: unknown) => current && error instanceof ApiError && setAdmin(false),
    );
    return () => {
      current = false;
    };
  }, [login, unasked]);
  return admin === true;
}

/** The code in the address that logs in, if there is one. */
function codeOf(): string | null {
  return /^#login=(.+)$/.exec(location.hash)?.[1] ?? null;
}

/** By the code in the address, if there is one; else by the cookie, if that is still good. */
async function enter(setLogin: (login: Login) => void, setTrouble: (trouble: string | null) => void): Promise<void> {
  const code = codeOf();
  if (code !== null) {
    // Out of the history before anything else: it is worth a login while it is unused.
    history.replaceState(null, "", location.pathname);
    try {
      await call("POST", "/login", { code: decodeURIComponent(code) });
      setLogin("in");
      return;
    } catch (error) {
      setTrouble(said(error));
    }
  }
  for (;;) {
    try {
      await call("GET", "/v1/sessions?limit=1");
      setLogin("in");
      return;
    } catch (error) {
      if (error instanceof ApiError) {
        setLogin(error.status === 401 ? "out" : "in");
        return;
      }
      setTrouble(strings.lost);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

render(<App />, document.getElementById("app")!);
