"use strict"

/*
 * The page of client_site.py, as a classic script and as a module. It has one manager, for the path
 * in the URL's query or in the page, and keeps all events in global variables for the tests.
 */
{
  const path = location.search.slice(1)
  const tokenSource = path === "/client/offered/" ? "subprotocol" : "path"
  const isTagged = document.querySelector("[data-socket-path]")
  const manager = isTagged
    ? new WebSocketManager()
    : new WebSocketManager(path, null, { tokenURL: "/websocket/token/", tokenSource })
  const LIMIT = 20000

  const now = () => Math.round(performance.now())
  const shown = document.getElementById("state")

  const kept = { manager, states: [], errors: [], events: [] }
  Object.assign(window, kept)

  manager.on("state", ({ state, reason }) => {
    kept.states.push({ state, reason, at: now() })
    shown.textContent = reason ? `${state}: ${reason}` : state
  })
  manager.on("error", ({ code }) => kept.errors.push(code))

  const record = ({ type, persisted }) => kept.events.push({ type, persisted, at: now() })
  for (const type of ["freeze", "resume", "visibilitychange"]) document.addEventListener(type, record)
  for (const type of ["pagehide", "pageshow", "online", "offline"]) addEventListener(type, record)

  /** Return the result of a promise: its value, its error's code, or "hangs". */
  window.outcome = (promise) =>
    Promise.race([
      promise.then(
        (value) => ["answered", value],
        ({ code }) => ["rejected", code],
      ),
      new Promise((resolve) => setTimeout(resolve, LIMIT, ["hangs"])),
    ])

  window.ask = (message, options) => outcome(manager.request(message, options))

  /** Open a URL without the manager; return the close code, or the first message before it. */
  window.dial = (url, offers = []) =>
    new Promise((resolve) => {
      const socket = new WebSocket(url, offers)
      socket.onmessage = ({ data }) => resolve(data)
      socket.onclose = ({ code }) => resolve(code)
    })

  /** Read at most `most` parts of a stream; return them, and how the stream ended if it did. */
  window.take = async (stream, most = Infinity) => {
    const numbers = []
    try {
      while (numbers.length < most) {
        const { value, done } = await stream.next()
        if (done) return [numbers, "ended"]
        numbers.push(value.number)
      }
    } catch ({ code }) {
      return [numbers, code]
    }
    return [numbers]
  }
}
