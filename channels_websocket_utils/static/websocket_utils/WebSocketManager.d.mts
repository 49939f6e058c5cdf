import WebSocketManager from "./WebSocketManager.js"
export { WebSocketManager, WebSocketManager as default }
