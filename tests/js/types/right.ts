// Uses that must compile: with interfaces of calls and pushes, and without.
import WebSocketManager, { WebSocketManager as byName } from "channels-websocket-utils"

type Same<One, Other> = (<T>() => T extends One ? 1 : 2) extends <T>() => T extends Other ? 1 : 2 ? true : false
declare function claim<Fact extends true>(): Fact

interface Calls {
  post_note(message: { text: string; tags?: string[] }): { id: number }
  leave(): void
  names(): string[]
  rename(message: { to: string }): Promise<string | null>
  count(message: { to: number }): AsyncIterable<number>
  rows(): Generator<{ id: number }>
  odd(message: { like: unknown }): any
}

interface Pushes {
  note: { id: number; text: string }
  "board.closed": {}
}

declare const signal: AbortSignal
declare const maybe: AbortSignal | undefined

// The same class with and without new, as the default and by name.
const manager = new WebSocketManager<Calls, Pushes>("/ws/notes/")
const called = WebSocketManager<Calls, Pushes>("/ws/notes/", null, {})
claim<Same<typeof manager, WebSocketManager<Calls, Pushes>>>()
claim<Same<typeof called, typeof manager>>()
claim<Same<typeof byName, typeof WebSocketManager>>()
claim<Same<typeof WebSocketManager.default, typeof WebSocketManager>>()

// Calls.
async function calls() {
  const reply = await manager.request({ type: "post_note", text: "x", tags: ["a"] })
  claim<Same<typeof reply, { id: number }>>()
  const nothing = await manager.request({ type: "leave" })
  claim<Same<typeof nothing, null>>()
  const list = await manager.request({ type: "names" }, { timeout: 500, signal })
  claim<Same<typeof list, string[]>>()
  const renamed = await manager.request({ type: "rename", to: "x" }, { signal: maybe, timeout: undefined })
  claim<Same<typeof renamed, string | null>>()
  const odd = await manager.request({ type: "odd", like: 1 })
  claim<Same<typeof odd, any>>()

  const sent = manager.sendJSON({ type: "post_note", text: "x" }, ({ id }) => id.toFixed())
  claim<Same<typeof sent, boolean>>()
  manager.sendJSON({ type: "leave" })
  manager.sendJSON({ type: "leave" }, null)
  manager.sendJSON({ type: "count", to: 3 }, (part) => claim<Same<typeof part, number>>())
}

// Messages that pass through functions of the page.
function ask<Name extends WebSocketManager.RequestName<Calls>>(message: WebSocketManager.Message<Calls, Name>) {
  return manager.request(message)
}
claim<Same<ReturnType<typeof ask<"post_note">>, Promise<{ id: number }>>>()
const asked = ask({ type: "post_note", text: "x" })
claim<Same<typeof asked, Promise<{ id: number }>>>()
function either(message: WebSocketManager.Message<Calls, "post_note" | "names">) {
  if (message.type === "post_note") claim<Same<typeof message.text, string>>()
  return manager.request(message)
}
claim<Same<ReturnType<typeof either>, Promise<string[] | { id: number }>>>()
function queue(...messages: WebSocketManager.Message<Calls>[]) {
  return messages.filter((message) => !manager.sendJSON(message))
}
queue({ type: "leave" }, { type: "count", to: 3 })
claim<Same<WebSocketManager.Reply<Calls, "post_note">, { id: number }>>()

// Streams.
async function streams() {
  for await (const part of manager.stream({ type: "count", to: 3 })) {
    claim<Same<typeof part, number>>()
  }
  const rows = manager.stream({ type: "rows" }, { timeout: 60_000, signal })
  const { done, value } = await rows.next()
  if (!done) value.id.toFixed()
  await rows.return()
  for await (const only of manager.stream({ type: "names" })) claim<Same<typeof only, string[]>>()
  claim<Same<WebSocketManager.Part<Calls, "rows">, { id: number }>>()
}

// Pushes.
function hear(message: { text: string }) {}
const undo = manager.addMessageListener("note", (note) => {
  claim<Same<typeof note.id, number>>()
  claim<Same<typeof note.key, "note">>()
})
undo()
manager.addMessageListener("note", hear, { once: true, signal: maybe })
manager.removeMessageListener("note", hear)
manager.addMessageListener("board.closed", async () => {})

// Topics.
const orders = manager.subscribe<{ total: number }>("orders/42", ({ total }, { offset, topic }) => {
  claim<Same<typeof offset, number | undefined>>()
  total.toFixed() + topic.trim()
}, { signal: maybe, since: { epoch: "e", offset: 3 } })
claim<Same<typeof orders, WebSocketManager.Subscription>>()
manager.subscribe("orders/42", (data) => claim<Same<typeof data, any>>(), { since: orders.position })
const ungap: () => void = orders.on("gap", ({ reason, position }) => {
  if (reason === "expired" && position) position.offset.toFixed()
}, { once: true })
orders.on("state", ({ state, reason }) => {
  const texts: Record<typeof state, string> = { subscribing: "", live: "", ended: `${reason}` }
  return reason === "permission_denied" ? "No access" : texts[state]
})
if (orders.state !== "ended") orders.unsubscribe()

// Events, states and codes.
manager.on("state", ({ state, reason, attempt, delay }) => {
  const texts: Record<typeof state, string> = { open: "", connecting: "", waiting: `${delay} ${attempt}`, closed: `${reason}` }
  return reason === "signed_out" ? "Log in again" : texts[state]
})
const deaf: () => void = manager.on("error", (error) => {
  claim<Same<typeof error, WebSocketManager.WebSocketManagerError>>()
  if (error.code === "user_changed" || error.code === "the site's own") console.log(error.id, error.cause)
  for (const { loc, message } of error.fields ?? []) console.log(loc.map(String).join("."), message.length)
}, { signal })
if (manager.state !== "closed") manager.close()
manager.reconnect()

const error = new WebSocketManager.WebSocketManagerError("timeout")
const asError: Error = error
try {
  throw error
} catch (caught) {
  if (caught instanceof WebSocketManager.WebSocketManagerError) caught.code.toUpperCase()
}

// Tokens.
new WebSocketManager()
new WebSocketManager(null, null, { maxRetries: 3 })
new WebSocketManager("/ws/", "wst_a")
new WebSocketManager("/ws/", undefined)
new WebSocketManager("/ws/", () => "wst_a")
new WebSocketManager("/ws/", async ({ attempt, signal }) => {
  const response = await fetch(`/token?${attempt}`, { signal })
  return (await response.json()) as { token: string; identity: string }
})
const token: WebSocketManager.TokenFunction = () => Promise.reject(Object.assign(new Error(), { status: 401 }))
new WebSocketManager("/ws/", token)

// Options.
const options: WebSocketManager.Options = {
  tokenURL: "/websocket/token/",
  csrfToken: () => document.querySelector("meta")?.content,
  identity: "ada",
  allowUserChange: true,
  maxRetries: 5,
  backoff: (failures) => (failures > 3 ? 1000 : undefined),
  shouldReconnect: ({ code, wasClean }) => (code === 4403 ? false : wasClean || undefined),
  logger: console,
}
new WebSocketManager("/ws/", null, options)
new WebSocketManager("/ws/", null, { csrfToken: "x", tokenURL: undefined, logger: { warn() {} } })
new WebSocketManager("/ws/", null, { logger: false })

// Without interfaces every message can be sent, and replies are any.
async function plain() {
  const manager = new WebSocketManager("/ws/")
  const reply = await manager.request({ type: "anything", more: 1 })
  claim<Same<typeof reply, any>>()
  manager.sendJSON({ type: "anything" }, (reply) => reply.text)
  for await (const part of manager.stream({ type: "anything" })) part.text
  manager.addMessageListener("anything", ({ text }) => text)
  manager.removeMessageListener("anything", hear)
  interface Note {
    type: "note"
    text: string
  }
  const note: Note = { type: "note", text: "x" }
  return manager.request(note)
}

// Only pushes are described.
async function half() {
  const manager = new WebSocketManager<any, Pushes>("/ws/")
  const reply = await manager.request({ type: "anything" })
  claim<Same<typeof reply, any>>()
  manager.addMessageListener("note", (note) => claim<Same<typeof note.text, string>>())
}

// A described manager and any manager can be assigned to each other.
function show(given: WebSocketManager) {
  return given.state
}
show(manager)
const described: WebSocketManager<Calls, Pushes> = new WebSocketManager("/ws/")

// Subclasses.
class Board extends WebSocketManager<Calls, Pushes> {
  readonly opened = Date.now()

  constructor(readonly board: string) {
    super(`/ws/board/${board}/`, null, { tokenURL: "/websocket/token/" })
  }

  override close() {
    super.close()
  }

  override get state() {
    return super.state
  }

  post(text: string) {
    return super.request({ type: "post_note", text })
  }
}
const board = new Board("a")
claim<Same<ReturnType<typeof board.post>, Promise<{ id: number }>>>()
show(board)
if (board instanceof WebSocketManager) board.board

class Open<Calls extends WebSocketManager.CallMap<Calls>> extends WebSocketManager<Calls> {}
new Open<Calls>("/ws/").request({ type: "names" }).then((names) => names.join())

export { asError, calls, deaf, described, either, half, plain, streams }
