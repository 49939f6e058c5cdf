// A page whose user is no longer that of its browser's cookies when it first connects, for
// evidence/attacks.py. One JSON argument has the attributes of the page's template tag, and the
// cookies. The page calls the method "touch". Prints the code of the error, or "answered".
// node --experimental-websocket

import { createRequire } from "node:module"

const { port, attributes, cookie } = JSON.parse(process.argv[2])
const site = `http://127.0.0.1:${port}`
const inCamelCase = (name) => name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())
const dataset = Object.fromEntries(attributes.map(([name, value]) => [inCamelCase(name), value]))

// What the client uses of a browser.
const { fetch, WebSocket } = globalThis
globalThis.location = { href: `${site}/` }
globalThis.document = { cookie, querySelector: () => ({ dataset }) }
globalThis.fetch = (url, options) => {
  const target = new URL(url, site)
  return fetch(target, { ...options, headers: { ...options.headers, Cookie: cookie } })
}
globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url, { headers: { Cookie: cookie } })
  }
}

const require = createRequire(import.meta.url)
const WebSocketManager = require("../channels_websocket_utils/static/websocket_utils/WebSocketManager.js")

const manager = new WebSocketManager(null, null, { logger: false })
const called = manager.request({ type: "touch" })
console.log(await called.then(() => "answered", ({ code }) => code))
process.exit()
