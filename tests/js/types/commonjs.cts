// What require() gives: the class itself, which is also its own default.
import WebSocketManager = require("channels-websocket-utils")
import byDefault from "channels-websocket-utils"
import { WebSocketManagerError } from "channels-websocket-utils"

interface Calls {
  count(message: { to: number }): AsyncIterable<number>
}

const manager = new WebSocketManager<Calls>("/ws/", null, {} satisfies WebSocketManager.Options)
const other: WebSocketManager<Calls> = new byDefault<Calls>("/ws/")
const third: WebSocketManager<Calls> = WebSocketManager.default("/ws/")
const error: WebSocketManager.WebSocketManagerError = new WebSocketManagerError("closed")

// @ts-expect-error: the name is one of the ES module only.
import { WebSocketManager as byName } from "channels-websocket-utils"
// @ts-expect-error: no such call.
manager.stream({ type: "counts", to: 3 })

export = [manager, other, third, error]
