import * as umd from "./WebSocketManager.js"
export const WebSocketManager = umd.default ?? globalThis.WebSocketManager
export default WebSocketManager
