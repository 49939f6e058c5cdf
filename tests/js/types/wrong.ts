// Misuses, each of which tsc must refuse.
import WebSocketManager, { WebSocketManager as byName } from "channels-websocket-utils"

interface Calls {
  post_note(message: { text: string }): { id: number }
  leave(): void
  count(message: { to: number }): AsyncIterable<number>
}

interface Pushes {
  note: { id: number; text: string }
}

const manager = new byName<Calls, Pushes>("/ws/")

// @ts-expect-error: no number.
new WebSocketManager(7)
// @ts-expect-error: without new, too.
WebSocketManager(7)
// @ts-expect-error: no URL object.
new WebSocketManager(new URL("wss://example.com/ws/"))
// @ts-expect-error: a token is no number.
new WebSocketManager("/ws/", 1)
// @ts-expect-error: the options are the third argument.
new WebSocketManager("/ws/", { tokenURL: "/websocket/token/" })
// @ts-expect-error: a token function returns a token.
new WebSocketManager("/ws/", () => 1)
// @ts-expect-error: a token with an identity is called token.
new WebSocketManager("/ws/", async () => ({ value: "wst_a", identity: "ada" }))
// @ts-expect-error: misspelt.
new WebSocketManager("/ws/", null, { tokenUrl: "/websocket/token/" })
// @ts-expect-error: milliseconds are numbers.
new WebSocketManager("/ws/", null, { backoff: () => "1 s" })
// @ts-expect-error: true, false or undefined.
new WebSocketManager("/ws/", null, { shouldReconnect: () => "yes" })
// @ts-expect-error: no number of times.
new WebSocketManager("/ws/", null, { maxRetries: "3" })
// @ts-expect-error: a logger has functions.
new WebSocketManager("/ws/", null, { logger: { warn: true } })
// @ts-expect-error: only false turns the logging off.
new WebSocketManager("/ws/", null, { logger: true })
// @ts-expect-error: calls are described by functions.
new WebSocketManager<{ post_note: { text: string } }>("/ws/")

// @ts-expect-error: no such call.
manager.request({ type: "post_notes", text: "x" })
// @ts-expect-error: the text is missing.
manager.request({ type: "post_note" })
// @ts-expect-error: the text is no number.
manager.request({ type: "post_note", text: 1 })
// @ts-expect-error: another call's field.
manager.request({ type: "post_note", text: "x", to: 3 })
// @ts-expect-error: every message has a type.
manager.request({ text: "x" })
// @ts-expect-error: a stream has no single reply.
manager.request({ type: "count", to: 3 })
// @ts-expect-error: no unit is guessed.
manager.request({ type: "leave" }, { timeout: "10 s" })
// @ts-expect-error: the controller is not its signal.
manager.request({ type: "leave" }, { signal: new AbortController() })
// @ts-expect-error: the reply has an id, and no text.
manager.request({ type: "post_note", text: "x" }).then(({ text }) => text)
// @ts-expect-error: the reply of nothing is null.
manager.request({ type: "leave" }).then((reply) => reply.id)

// @ts-expect-error: the text is no number.
manager.sendJSON({ type: "post_note", text: 1 }, () => {})
// @ts-expect-error: the id is a number.
manager.sendJSON({ type: "post_note", text: "x" }, ({ id }: { id: string }) => id)
// @ts-expect-error: sendJSON() returns no promise.
manager.sendJSON({ type: "leave" }).then(() => {})
// @ts-expect-error: options are request()'s.
manager.sendJSON({ type: "leave" }, { timeout: 1000 })

async function streams() {
  // @ts-expect-error: the field is missing.
  for await (const part of manager.stream({ type: "count" })) part
  // @ts-expect-error: a part is a number.
  for await (const part of manager.stream({ type: "count", to: 3 })) part.text
  // @ts-expect-error: a stream is no array.
  for (const part of manager.stream({ type: "count", to: 3 })) part
  // @ts-expect-error: a stream is no promise of all its parts.
  const parts: number[] = await manager.stream({ type: "count", to: 3 })
  return parts
}

// @ts-expect-error: no such push.
manager.addMessageListener("notes", () => {})
// @ts-expect-error: the payload has no title.
manager.addMessageListener("note", ({ title }) => title)
// @ts-expect-error: misspelt.
manager.addMessageListener("note", () => {}, { onec: true })
// @ts-expect-error: a listener is a function.
manager.addMessageListener("note", null)
// @ts-expect-error: no such push.
manager.removeMessageListener("notes", () => {})

// @ts-expect-error: a topic is a name.
manager.subscribe(42, () => {})
// @ts-expect-error: a subscription has a handler.
manager.subscribe("orders/42")
// @ts-expect-error: the data is an object.
manager.subscribe<number>("orders/42", () => {})
// @ts-expect-error: a position has an epoch.
manager.subscribe("orders/42", () => {}, { since: { offset: 3 } })
// @ts-expect-error: the position of another subscription, not the subscription.
manager.subscribe("orders/42", () => {}, { since: manager.subscribe("orders/42", () => {}) })
// @ts-expect-error: no such event.
manager.subscribe("orders/42", () => {}).on("message", () => {})
// @ts-expect-error: no such state.
manager.subscribe("orders/42", () => {}).on("state", ({ state }) => state === "open")
// @ts-expect-error: unsubscribe() changes it.
manager.subscribe("orders/42", () => {}).state = "ended"

// @ts-expect-error: no such event.
manager.on("open", () => {})
// @ts-expect-error: no such state.
manager.on("state", ({ state }) => state === "opened")
// @ts-expect-error: no such reason.
manager.on("state", ({ reason }) => reason === "logged_out")
// @ts-expect-error: an error event is an error.
manager.on("error", ({ reason }) => reason)
// @ts-expect-error: reconnect() changes it.
manager.state = "open"
// @ts-expect-error: close() takes no code.
manager.close(1000)
// @ts-expect-error: the manager is no WebSocket.
manager.send("x")
// @ts-expect-error: it is a static member.
manager.WebSocketManagerError

// @ts-expect-error: an error has a code.
new WebSocketManager.WebSocketManagerError()
// @ts-expect-error: the class is no value of the module.
import { WebSocketManagerError } from "channels-websocket-utils"

class Board extends WebSocketManager<Calls, Pushes> {
  // @ts-expect-error: a subclass keeps the parameters.
  override request(name: string): Promise<never> {
    throw new Error(name)
  }
}

export { Board, streams }
