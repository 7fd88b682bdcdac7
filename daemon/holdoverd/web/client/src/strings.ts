/** Every text that people read, in one place. */

import type { Json, State } from "./wire";

const number = new Intl.NumberFormat("en");

export const strings = {
  // pages
  pages: "Pages",
  sessions: "Sessions",
  phone: "Phone",
  logIn: "Log in",
  logOut: "Log out",
  token: "Token",
  tokenHint:
    "On the server, `holdover token new` prints a token; under `holdover up` the terminal shows one. " +
    "A browser that is logged in already shows a code for the next one under “Phone”.",
  opening: "Opening …",
  newSession: "New session",
  filter: "Filter by title or folder",
  noSessions: "There is no session yet.",
  nothingFound: "No session fits.",
  more: "Show more",
  cancel: "Cancel",
  start: "Start",
  startingSession: "Starting …",
  firstPrompt: "First prompt",
  newFields: {
    title: "Title (optional)",
    cwd: "Folder on the server (left empty: a new workspace)",
    agent: "Agent (left empty: the default)",
    model: "Model (left empty: the agent’s own)",
  },
  phoneTitle: "Log in on a phone",
  phoneHint: "Point the phone’s camera at this code. It works once, within five minutes, and logs in as you.",
  qr: "QR code with a login address",
  loginLink: "The same as a link",
  another: "Another code",

  // a session
  allSessions: "All sessions",
  noSession: "There is no such session, or it is not shared with you.",
  unshared: "This session is no longer shared with you.",
  details: "Details",
  agent: "Agent",
  folder: "Folder",
  owner: "Owner",
  cost: "Cost",
  context: "Context",
  title: "Title",
  model: "Model",
  mode: "Permissions",
  share: "Shared",
  shareNobody: "with nobody",
  shareRead: "everyone may read",
  shareWrite: "everyone may write",
  save: "Save",
  resume: "Resume",
  end: "End",
  endSure: "End this session? Its messages stay.",
  purge: "Delete",
  purgeSure: "End this session and delete its messages?",
  confirm: "Are you sure?",
  modes: {
    default: "ask",
    acceptEdits: "accept edits",
    plan: "plan only",
    bypassPermissions: "allow everything",
    dontAsk: "deny what would be asked",
    auto: "let the agent judge",
  } as Record<string, string>,
  states: {
    starting: "starting",
    idle: "ready",
    working: "working",
    waiting: "asks you",
    dormant: "asleep",
    ended: "ended",
    failed: "failed",
  } satisfies Record<State, string>,

  // the conversation
  conversation: "Conversation",
  beginning: "The beginning of this session.",
  loadingEarlier: "Loading earlier messages …",
  toEnd: "↓ To the end",
  newMessages: (count: number) => `↓ ${number.format(count)} new`,
  thinking: "Thinking",
  thought: "Thought",
  toolResult: "Result",
  toolDone: "done",
  toolFailed: "failed",
  asked: (tool: string) => `May it use ${tool}?`,
  outcome: (outcome: string, by: string | null) =>
    ({
      allow: `allowed${by === null ? "" : ` by ${by}`}`,
      deny: `denied${by === null ? "" : ` by ${by}`}`,
      withdrawn: "withdrawn by the agent",
    })[outcome] ?? outcome,
  turnDone: "Done",
  turnFailed: (why: string) => (why.startsWith("aborted") ? "Interrupted" : `Failed: ${why.replaceAll("_", " ")}`),
  seconds: (value: number) => `${value < 10 ? value.toFixed(1) : number.format(Math.round(value))} s`,
  large: (size: string) => `Large message, ${size}`,
  showWhole: (size: string) => `Load all ${size}`,
  picture: "Picture",
  noPicture: "A picture of a kind that is not shown here.",
  subAgent: "Sub-agent",
  earlier: "Earlier",
  later: "Later",
  messages: (count: number) => (count === 1 ? "1 message" : `${number.format(count)} messages`),
  working: "Working …",
  starting: "The agent is starting …",
  compacting: "Summarising the conversation to make room …",
  retrying: (attempt: number, of: number) => `The model’s service failed; attempt ${attempt}${of ? ` of ${of}` : ""} …`,
  rateLimited: (limit: Json) =>
    `${limit.status === "rejected" ? "The account’s limit is reached" : "The account’s limit is near"}${
      typeof limit.resetsAt === "number" ? `; it resets at ${new Date(limit.resetsAt * 1000).toLocaleTimeString()}` : ""
    }.`,
  dormant: "The agent is asleep; the next prompt wakes it.",
  ended: "This session has ended.",
  failed: "The agent could not be started; the next prompt tries again.",
  lost: "Connection lost, connecting again …",
  outdated: "A newer version of this page is here.",
  reload: "Load it",
  dismiss: "Dismiss",

  // prompts
  prompt: "Prompt",
  send: "Send",
  interrupt: "Stop",
  interruptHint: "Stop this turn (Esc)",
  sending: "Sending …",
  taken: "Sent",
  queued: "Waits for its turn.",
  cancelPrompt: "Withdraw",
  takeBack: "Edit",

  // permissions
  permissions: "Open questions of the agent",
  mayIt: (what: string) => `Allow ${what}?`,
  bySubAgent: (title: string) => `(a sub-agent${title ? `: ${title}` : ""})`,
  question: "The agent asks",
  plan: "The agent’s plan",
  allow: "Allow",
  deny: "Deny",
  approve: "Approve",
  reason: "Reason (optional)",
  editInput: "Change the input",
  keepInput: "Keep the input",
  editedInput: "Changed input, as JSON",
  badInput: (why: string) => `This is not valid: ${why}`,
  noObject: "the input has to be a JSON object",
  rememberRule: (rule: string) => `Allow, and always ${rule}`,
  rememberMode: (mode: string) => `Allow, and from now on: ${strings.modes[mode] ?? mode}`,
  rememberOther: (what: string) => `Allow, and remember ${what}`,
  otherAnswer: "Other",
  sendAnswer: "Answer",

  // figures
  dollars: (value: number) => `$${value.toFixed(value < 1 ? 4 : 2)}`,
  contextUsed: (used: number, limit: number) =>
    `${number.format(used)} of ${number.format(limit)} tokens (${Math.round((100 * used) / Math.max(1, limit))} %)`,
  bytes: (size: number) => (size < 1e6 ? `${Math.round(size / 1000)} kB` : `${(size / 1e6).toFixed(1)} MB`),
  asks: (count: number) => (count === 1 ? "1 question" : `${count} questions`),
  ago: (ms: number) => {
    const seconds = Math.max(0, Math.round(ms / 1000));
    if (seconds < 60) return "just now";
    if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
    if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
    return `${Math.round(seconds / 86_400)} d ago`;
  },
};
