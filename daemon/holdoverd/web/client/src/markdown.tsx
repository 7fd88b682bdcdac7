/**
 * Markdown of agents as elements. Agents quote strangers, so only what text needs gets through: no
 * images (each would be a request to somebody), no styles, no ids, no frames, no forms.
 */

import DOMPurify from "dompurify";
import { Marked } from "marked";
import { memo } from "preact/compat";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { colour } from "./code";
import { isReadable, settle, visible } from "./rules/text";

const TAGS = [
  ...["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "code", "pre"],
  ...["ul", "ol", "li", "blockquote", "a", "table", "thead", "tbody", "tr", "th", "td", "span"],
];

/** What the fences of the text being read say, in order; "" where there is none. */
let fences: string[] = [];

const marked = new Marked({ gfm: true, breaks: false, async: false });
marked.use({
  renderer: {
    code({ lang }) {
      fences.push(lang ?? "");
      return false; // as it would be anyway
    },
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    // HTML in Markdown is shown as what it is: text.
    html({ text }) {
      return escape(text);
    },
  },
});

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  const href = node.getAttribute("href") ?? "";
  // A relative address would lead into this client, with the reader's rights.
  if (!/^(?:https?:\/\/|mailto:)/i.test(href)) {
    node.removeAttribute("href");
    return;
  }
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
  node.setAttribute("title", visible(href));
});

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

function fragmentOf(text: string): DocumentFragment {
  fences = [];
  const fragment = purify.sanitize(marked.parse(text) as string, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "start", "align"],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  // Only now, since `&#x202e;` has become the character that it names.
  const texts = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode as Text;
    const shown = visible(node.data);
    if (shown !== node.data) node.data = shown;
  }
  fragment.querySelectorAll("pre > code").forEach((code, at) => colour(code, fences[at] ?? ""));
  return fragment;
}

/** `text` as Markdown, or as it is where it is too long or too deep to be read as such. */
export const Markdown = memo(function Markdown({ text }: { text: string }) {
  const readable = useMemo(() => isReadable(text), [text]);
  const element = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    if (readable) element.current?.replaceChildren(fragmentOf(text));
  }, [text, readable]);
  return readable ? <div class="md" ref={element} /> : <Plain text={text} />;
});

/** Markdown that is being written: what is finished is read once. */
export function GrowingMarkdown({ text }: { text: string }) {
  const { done, rest } = settle(text);
  return (
    <>
      {done.map((part, at) => (
        <Markdown key={at} text={part} />
      ))}
      <Markdown key="rest" text={rest} />
    </>
  );
}

/** More than this of a text is not laid out at once: a line of megabytes would stall the page. */
const MAX_PLAIN = 100_000;

/** Text as it is, in a block that scrolls by itself. */
export function Plain({ text, class: extra = "" }: { text: string; class?: string }) {
  const shown = text.length > MAX_PLAIN ? `${text.slice(0, MAX_PLAIN)}…` : text;
  return (
    <pre class={`block ${extra}`} tabIndex={0}>
      {visible(shown)}
    </pre>
  );
}
