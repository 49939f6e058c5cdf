// What WebSocketManager does after failures, for test_storm.py. One JSON argument has the options.

import { mock } from "node:test"

import { openPage } from "../js/support.mjs"

const { shares, failures, codes, attemptLimit, steadyAfter, silenceLimit } = JSON.parse(process.argv[2])

/** Return the result of `act` on a new page whose Math.random() is `share`. */
function onPage(share, act) {
  const undo = []
  const page = openPage({ mock, after: (callback) => undo.push(callback) })
  page.random = () => share
  const { states } = page.connect()
  const result = act(page, () => states.at(-1))
  undo.forEach((callback) => callback())
  return result
}

/** Let the socket fail `count` times, and return the delays that the manager announces. */
function fail(page, last, count) {
  return Array.from({ length: count }, () => {
    page.socket.drop()
    const { delay } = last()
    page.tick(delay + 1)
    return delay
  })
}

function delayAfter(seconds) {
  return onPage(0.5, (page, last) => {
    fail(page, last, 3)
    page.socket.accept()
    page.tick(seconds)
    page.socket.drop()
    return last().delay
  })
}

function endedWith(code) {
  return onPage(0.5, (page, last) => {
    page.socket.accept()
    page.socket.drop(code)
    return last()
  })
}

function stateAfter(ms) {
  return onPage(0.5, (page, last) => {
    page.tick(ms)
    return last()?.state ?? "unchanged"
  })
}

function pingsAfter(ms) {
  return onPage(0.5, (page) => {
    page.socket.accept()
    page.socket.push({ key: "websocket.ready" })
    page.tick(ms)
    return page.socket.sent.filter(({ type }) => type === "websocket.ping").length
  })
}

console.log(
  JSON.stringify({
    pauses: shares.map((share) => onPage(share, (page, last) => fail(page, last, failures))),
    stops: codes.filter((code) => endedWith(code).state === "closed"),
    beforeLimit: stateAfter(attemptLimit - 1),
    atLimit: stateAfter(attemptLimit),
    pings: [pingsAfter(silenceLimit - 1), pingsAfter(silenceLimit)],
    unsteady: delayAfter(steadyAfter - 1),
    steady: delayAfter(steadyAfter),
    tooMany: endedWith(4429).delay,
  }),
)
