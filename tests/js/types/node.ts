// Node's types without the DOM's.
import WebSocketManager from "channels-websocket-utils"

const controller = new AbortController()
const manager = new WebSocketManager("wss://example.com/ws/", async ({ signal }) => {
  const answer = await fetch("https://example.com/token", { method: "POST", signal })
  return (await answer.json()) as { token: string }
}, { shouldReconnect: ({ code }) => code !== 4403, logger: console })
manager.request({ type: "leave" }, { signal: AbortSignal.any([controller.signal, AbortSignal.timeout(500)]) })
manager.addMessageListener("note", ({ text }) => text, { signal: controller.signal })

export {}
