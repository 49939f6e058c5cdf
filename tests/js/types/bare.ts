// A project without the types of the DOM and of Node: the manager's own types are used.
import WebSocketManager from "channels-websocket-utils"

interface Calls {
  count(message: { to: number }): AsyncGenerator<number>
}

const manager = new WebSocketManager<Calls>("/ws/", async ({ signal }) => (signal.aborted ? "" : "wst_a"), {
  shouldReconnect: ({ code, reason, wasClean }) => wasClean && code !== 4403 && reason === "",
})
manager.request({ type: "none" } as never, { signal: { aborted: false, addEventListener() {}, removeEventListener() {} } })
for await (const part of manager.stream({ type: "count", to: 3 })) part.toFixed()

// @ts-expect-error: no such field.
new WebSocketManager("/ws/", null, { shouldReconnect: ({ target }) => target })

export {}
