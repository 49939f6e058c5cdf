"use strict"

/*
 * The page of ticks_site.py. `calls` has each call of a handler: the name of the subscription, and the
 * number, or "gap" and the position after it. `naive` has the numbers of a plain socket.
 */
{
  const manager = new WebSocketManager()
  const calls = []
  const naive = []
  const start = Number(document.body.dataset.start)

  function follow(name, options) {
    const subscription = manager.subscribe(
      "ticks/1",
      ({ n }, { offset }) => {
        calls.push([name, n, offset])
        if (n % 100 === 0) throw new Error("A handler that throws")
      },
      options,
    )
    subscription.on("gap", ({ reason, position }) => calls.push([name, "gap", position.offset, reason]))
    return subscription
  }

  /** Follow from 20 numbers before the present one. */
  function followOlder(name) {
    const { epoch, offset } = main.position
    follow(name, { since: { epoch, offset: Math.max(start, offset - 20) } })
  }

  function followShortly(name) {
    const subscription = follow(name, { since: null })
    setTimeout(() => subscription.unsubscribe(), 300)
  }

  // A socket that reconnects at once, but has no positions.
  let socket

  function connect() {
    socket = new WebSocket(new URL("/ticks/naive/", location.href).href.replace("http", "ws"))
    socket.onmessage = ({ data }) => naive.push(Number(data))
    socket.onclose = () => document.hidden || setTimeout(connect, 50)
  }

  // An open socket keeps a page out of the back/forward cache.
  addEventListener("pagehide", () => {
    socket.onclose = null
    socket.close()
  })
  addEventListener("pageshow", ({ persisted }) => persisted && connect())
  connect()

  // The handlers of the errors that the handlers throw: they would be written to the console.
  const failures = []
  manager.on("error", ({ code }) => failures.push(code))
  // The last states, for the report of a test that fails.
  const states = []
  manager.on("state", ({ state, reason, delay }) => {
    states.push(`${new Date().toISOString()} ${state} ${reason} ${delay}`)
    if (states.length > 20) states.shift()
  })
  const main = follow("main")
  const unplaced = follow("unplaced", { since: null })
  Object.assign(window, { manager, calls, naive, failures, states, start, main, unplaced, followOlder, followShortly })
}
