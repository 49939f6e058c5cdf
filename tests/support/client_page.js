"use strict"

/*
 * The page of client_site.py, as a classic script and as a module: one manager on the path that the
 * URL's query or the page itself names, and what happens kept where a test can see it.
 */
{
  const path = location.search.slice(1)
  const tokenSource = path === "/client/offered/" ? "subprotocol" : "path"
  const isTold = document.querySelector("[data-socket-path]")
  const manager = isTold
    ? new WebSocketManager()
    : new WebSocketManager(path, null, { tokenURL: "/websocket/token/", tokenSource })
  const LIMIT = 20000

  const now = () => Math.round(performance.now())
  const shown = document.getElementById("state")

  const kept = { manager, states: [], errors: [], heard: [] }
  Object.assign(window, kept)

  manager.on("state", ({ state, reason }) => {
    kept.states.push({ state, reason, at: now() })
    shown.textContent = reason ? `${state}: ${reason}` : state
  })
  manager.on("error", ({ code }) => kept.errors.push(code))

  const hear = ({ type, persisted }) => kept.heard.push({ type, persisted, at: now() })
  for (const type of ["freeze", "resume", "visibilitychange"]) document.addEventListener(type, hear)
  for (const type of ["pagehide", "pageshow", "online", "offline"]) addEventListener(type, hear)

  /** What becomes of a promise: its value, its error's code, or that it hangs. */
  window.outcome = (promise) =>
    Promise.race([
      promise.then(
        (value) => ["answered", value],
        ({ code }) => ["rejected", code],
      ),
      new Promise((resolve) => setTimeout(resolve, LIMIT, ["hangs"])),
    ])

  window.ask = (message, options) => outcome(manager.request(message, options))

  /** Open a URL by hand; returns the close code, or the first frame if one comes before. */
  window.dial = (url, offers = []) =>
    new Promise((resolve) => {
      const socket = new WebSocket(url, offers)
      socket.onmessage = ({ data }) => resolve(data)
      socket.onclose = ({ code }) => resolve(code)
    })

  /** Take parts of a stream: at most `most`, and how it ended if it did. */
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
