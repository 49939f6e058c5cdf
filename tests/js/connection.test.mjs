import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage, random, settled, tokens, WebSocketManager } from "./support.mjs"

const last = (states) => states.at(-1)

test("a connection is connecting, then open, and its events have the reason", (t) => {
  const page = openPage(t)
  const { manager, states } = page.connect()

  assert.equal(manager.state, "connecting")
  page.socket.accept()
  assert.equal(manager.state, "open")
  page.socket.drop()
  assert.equal(manager.state, "waiting")
  page.tick(1700)
  assert.equal(manager.state, "connecting")
  manager.close()
  assert.equal(manager.state, "closed")
  assert.deepEqual(states, [
    { state: "open", reason: null, attempt: 1, delay: 0 },
    { state: "waiting", reason: "disconnected", attempt: 2, delay: 1700 },
    { state: "connecting", reason: "disconnected", attempt: 2, delay: 0 },
    { state: "closed", reason: "closed", attempt: 2, delay: 0 },
  ])
})

test("the wait is 200 ms + random(0, min(15 s, 3 s * 1.4^n))", (t) => {
  const page = openPage(t)
  for (const share of [0, 0.999999]) {
    page.random = () => share
    const { manager, states } = page.connect()
    for (let n = 0; n < 12; n++) {
      page.socket.drop()
      assert.equal(last(states).delay, 200 + share * Math.min(15000, 3000 * 1.4 ** n))
      page.tick(last(states).delay + 1)
    }
    manager.close()
  }
})

test("ten minutes of outage cost at most 100 dials", (t) => {
  const page = openPage(t)
  page.connect()

  for (let second = 0; second < 600; second++) {
    if (page.socket.readyState === 0) page.socket.drop()
    page.tick(1000)
  }

  assert.ok(page.sockets.length <= 100, `${page.sockets.length} dials`)
})

test("the longest wait in ten minutes of outage is 15.2 s, and no two clients dial together", (t) => {
  const page = openPage(t)
  page.random = random
  const clients = [page.connect("/a/"), page.connect("/b/")]

  for (let tenth = 0; tenth < 6000; tenth++) {
    for (const socket of page.sockets.slice(-2)) if (socket.readyState === 0) socket.drop()
    page.tick(100)
  }

  const [one, two] = clients.map(({ states }) => states.map(({ delay }) => delay).filter(Boolean))
  assert.ok(Math.max(...one, ...two) <= 15200)
  assert.ok(Math.min(...one, ...two) >= 200)
  assert.deepEqual(one.filter((delay) => two.includes(delay)), [])
})

test("of 1,000 clients at most a tenth dials within 100 ms after an outage, and no token is used twice", async (t) => {
  const page = openPage(t)
  page.random = random
  const clients = 1000
  const managers = []
  for (let n = 0; n < clients; n++) {
    let asked = 0
    managers.push(new WebSocketManager("/ws/", async () => `token-${n}-${++asked}`))
  }
  await settled()
  for (const socket of page.sockets) socket.accept()
  await page.pass(10000)

  const begun = page.sockets.length
  let answered = 0
  for (const socket of page.sockets) socket.drop()
  for (let ms = 0; ms < 90000; ms += 20) {
    await page.pass(20)
    for (; answered < page.sockets.length; answered++) {
      if (answered < begun) continue
      const socket = page.sockets[answered]
      if (ms < 60000) socket.drop()
      else socket.accept()
    }
  }

  const dials = page.sockets.slice(begun).map(({ dialledAt }) => dialledAt)
  let peak = 0
  for (let first = 0, last = 0; last < dials.length; last++) {
    while (dials[last] - dials[first] >= 100) first++
    peak = Math.max(peak, last - first + 1)
  }
  t.diagnostic(`${dials.length} dials, at most ${peak} within 100 ms`)
  assert.ok(peak <= clients / 10, `${peak} dials within 100 ms`)
  assert.ok(managers.every(({ state }) => state === "open"))
  const urls = page.sockets.map(({ url }) => url)
  assert.equal(new Set(urls).size, urls.length)
  for (const manager of managers) manager.close()
})

test("a server that accepts and then drops connections is dialled at most 20 times a minute", (t) => {
  const page = openPage(t)
  page.connect()

  for (let tenth = 0; tenth < 600; tenth++) {
    if (page.socket.readyState === 0) {
      page.socket.accept()
      page.socket.drop()
    }
    page.tick(100)
  }

  assert.ok(page.sockets.length <= 20, `${page.sockets.length} dials`)
})

test("the wait is short again after 5 s open, and not before", (t) => {
  const page = openPage(t)
  const { states } = page.connect()
  page.socket.drop()
  page.tick(1700)

  page.socket.accept()
  page.tick(4999)
  page.socket.drop()
  assert.equal(last(states).delay, 2300)

  page.tick(2300)
  page.socket.accept()
  page.tick(5000)
  page.socket.drop()
  assert.equal(last(states).delay, 1700)
  assert.equal(last(states).attempt, 2)
})

test("options.backoff overrides the wait, and invalid results do not", (t) => {
  const page = openPage(t)
  const waits = [50, undefined, NaN, -1, "9", Infinity]
  const asked = []
  const { states } = page.connect("/ws/", null, {
    backoff: (n) => {
      asked.push(n)
      return waits[n]
    },
  })

  const delays = waits.map(() => {
    page.socket.drop()
    const { delay } = last(states)
    page.tick(Math.min(delay + 1, 20000))
    return Math.round(delay)
  })

  assert.deepEqual(asked, [0, 1, 2, 3, 4, 5])
  assert.deepEqual(delays, [50, 2300, 3140, 4316, 5962, Infinity])
  assert.equal(page.sockets.length, 6, "an infinite wait does not become a wait of 1 ms")
})

test("an error of options.backoff is reported and the default wait is used", (t) => {
  const page = openPage(t)
  const { states, codes } = page.connect("/ws/", null, {
    backoff() {
      throw new Error("mine")
    },
  })

  page.socket.drop()

  assert.equal(last(states).delay, 1700)
  assert.deepEqual(codes(), ["handler_failed"])
})

test("options.maxRetries limits the number of dials; by default there is no limit", (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect("/ws/", null, { maxRetries: 2 })
  for (let dial = 0; dial < 3; dial++) {
    page.socket.drop()
    page.tick(20000)
  }

  assert.equal(manager.state, "closed")
  assert.equal(page.sockets.length, 3)
  assert.deepEqual(codes(), ["max_retries"])
})

test("a dial that hangs is ended after 10 s and repeated", (t) => {
  const page = openPage(t)
  const { states } = page.connect()

  page.tick(9999)
  assert.equal(page.socket.readyState, 0)
  page.tick(1)

  assert.equal(page.socket.readyState, 2)
  assert.deepEqual(last(states), { state: "waiting", reason: "timeout", attempt: 2, delay: 1700 })
  page.tick(1700)
  assert.equal(page.sockets.length, 2)
})

test("the limit of 10 s is for the token and the dial together", async (t) => {
  const page = openPage(t)
  let answer
  const { states } = page.connect("/ws/", () => new Promise((resolve) => (answer = resolve)))

  await page.pass(6000)
  answer("late")
  await settled()
  assert.equal(page.sockets.length, 1)
  await page.pass(4000)

  assert.equal(last(states).reason, "timeout")
})

test("a socket that opens late is closed at once and changes nothing", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const received = []
  manager.addMessageListener("news", (message) => received.push(message))
  const [first] = page.sockets
  page.tick(10000)

  first.accept()
  first.push({ key: "news" })
  first.drop(1000)

  assert.equal(manager.state, "waiting")
  assert.deepEqual(received, [])
  assert.equal(first.readyState, 3)
  page.tick(1700)
  const [, second] = page.sockets
  second.accept()
  first.readyState = 1
  first.onopen({})
  assert.equal(first.readyState, 2)
  first.drop(1000)
  assert.equal(second.readyState, 1)
  assert.equal(manager.state, "open")
})

for (const [moment, reach] of [["a dial", () => {}], ["an open connection", (page) => page.socket.accept()]]) {
  test(`an error of ${moment} ends the attempt after 100 ms if no close follows`, (t) => {
    const page = openPage(t)
    const events = []
    const shouldReconnect = (event) => void events.push(event)
    const { manager, states } = page.connect("/ws/", null, { shouldReconnect })
    reach(page)
    const before = manager.state

    page.socket.fail()
    page.tick(99)
    assert.equal(manager.state, before)
    page.tick(1)

    assert.deepEqual(last(states), { state: "waiting", reason: "disconnected", attempt: 2, delay: 1700 })
    assert.deepEqual(events, [{ code: 1006, reason: "", wasClean: false }])
    assert.equal(page.socket.readyState, 2)
    page.tick(1700)
    assert.equal(page.sockets.length, 2)
  })

  test(`a close that follows the error of ${moment} decides, once`, (t) => {
    const page = openPage(t)
    const { manager, states, codes } = page.connect()
    reach(page)
    states.length = 0

    page.socket.fail()
    page.tick(99)
    page.socket.drop(4403)
    page.tick(60000)

    assert.equal(manager.state, "closed")
    assert.deepEqual(states.map(({ reason }) => reason), ["refused"])
    assert.deepEqual(codes(), ["refused"])
    assert.equal(page.sockets.length, 1)
  })
}

test("close() and reconnect() between an error and its close win", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  page.socket.fail()
  manager.reconnect()
  page.sockets[0].drop(4403)
  page.socket.accept()
  page.tick(200)
  assert.equal(manager.state, "open")
  assert.equal(page.sockets.length, 2)

  page.socket.fail()
  manager.close()

  assert.equal(page.timers.size, 0)
  page.tick(30000)
  assert.equal(page.sockets.length, 2)
})

test("the late error of an earlier socket is ignored", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  page.tick(11700)
  page.socket.accept()

  page.sockets[0].fail()
  page.tick(30000)

  assert.equal(manager.state, "open")
  assert.equal(page.sockets.length, 2)
})

const leavings = {
  "close()": (page, manager) => manager.close(),
  "reconnect()": (page, manager) => manager.reconnect(),
  "pagehide": (page) => page.window.dispatch("pagehide"),
  "a dead link": async (page) => {
    page.socket.push({ key: "websocket.ready" })
    await page.pass(35000)
  },
  "another user": (page) => page.socket.push({ key: "websocket.ready", identity: "ben" }),
  "an error": async (page) => {
    page.socket.fail()
    await page.pass(100)
  },
}

for (const [name, leave] of Object.entries(leavings)) {
  test(`a socket that calls onerror and onclose inside close() is left once, by ${name}`, async (t) => {
    const page = openPage(t)
    let closes = 0
    globalThis.WebSocket = class extends page.FakeSocket {
      close() {
        if (++closes > 9) throw new Error("recursion")
        this.fail()
        this.drop(1000)
      }
    }
    const { manager, states } = page.connect("/ws/", tokens(), { identity: "ada" })
    await settled()
    page.socket.accept()
    states.length = 0

    await leave(page, manager)

    assert.equal(closes, 1)
    assert.ok(!states.some(({ reason }) => reason === "ended"), "its own close is not the server's")
    assert.ok(states.length <= 2, JSON.stringify(states))
  })
}

test("an error of the WebSocket constructor is a failed dial, and is not logged", async (t) => {
  const page = openPage(t)
  const received = []
  globalThis.WebSocket = class {
    constructor(url) {
      throw new Error(`bad URL ${url}`)
    }
  }
  const log = (...values) => received.push(...values.map(String), JSON.stringify(values))
  const logger = { debug: log, warn: log, error: log }
  const { manager, states } = page.connect("/ws/", "wst_secret", { tokenURL: "/token/", logger })
  await settled()

  assert.equal(manager.state, "waiting")
  assert.equal(states.length, 1, "the listener of the caller is called")
  assert.doesNotMatch(JSON.stringify(received), /wst_secret/)
})

test("a token that cannot be encoded is a failed dial", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", () => "\ud800")
  await settled()

  assert.equal(manager.state, "waiting")
})

const endings = [
  [1000, "ended", []],
  [1002, "protocol_error", ["protocol_error"]],
  [1003, "protocol_error", ["protocol_error"]],
  [1007, "protocol_error", ["protocol_error"]],
  [1009, "protocol_error", ["protocol_error"]],
  [1010, "protocol_error", ["protocol_error"]],
  [4400, "bad_message", ["bad_message"]],
  [4403, "refused", ["refused"]],
  [4409, "replaced", ["replaced"]],
]

for (const [code, reason, errors] of endings) {
  test(`close code ${code} stops with reason ${reason}`, (t) => {
    const page = openPage(t)
    const { manager, states, codes } = page.connect()
    page.socket.accept()

    page.socket.drop(code)
    page.tick(60000)

    assert.equal(manager.state, "closed")
    assert.equal(last(states).reason, reason)
    assert.deepEqual(codes(), errors)
    assert.equal(page.sockets.length, 1)
    assert.equal(page.timers.size, 0)
  })
}

for (const code of [1001, 1005, 1006, 1011, 1012, 1013, 1015, 3000, 4000, 4404, 4408, 4490]) {
  test(`close code ${code} is tried again`, (t) => {
    const page = openPage(t)
    const { states } = page.connect()
    page.socket.accept()

    page.socket.drop(code)

    assert.deepEqual(last(states), { state: "waiting", reason: "disconnected", attempt: 2, delay: 1700 })
  })
}

test("after close code 4429 the wait is at least 30 s", (t) => {
  const page = openPage(t)
  page.random = () => 0
  const { states } = page.connect()

  page.socket.drop(4429)

  assert.equal(last(states).delay, 30200)
})

test("close code 4401 causes two token requests, the first at once, then the manager stops", async (t) => {
  const page = openPage(t)
  const ask = tokens()
  const { manager, states, codes } = page.connect("/ws/", ask)
  for (let refusal = 0; refusal < 3; refusal++) {
    await settled()
    page.socket.accept()
    page.socket.drop(4401)
    if (refusal === 0) await settled()
    if (refusal === 0) assert.equal(page.sockets.length, 2)
    await page.pass(5000)
  }

  assert.equal(manager.state, "closed")
  assert.equal(last(states).reason, "token_refused")
  assert.deepEqual(codes(), ["token_refused"])
  assert.equal(ask.questions.length, 3)
  assert.equal(page.timers.size, 0)
})

test("a received message, or 5 s open, resets the count of 4401", async (t) => {
  for (const live of [(page) => page.socket.push({ key: "news" }), (page) => page.tick(5000)]) {
    const page = openPage(t)
    const { manager, states } = page.connect("/ws/", tokens())
    for (let refusal = 0; refusal < 6; refusal++) {
      await settled()
      page.socket.accept()
      if (refusal % 2) live(page)
      page.socket.drop(4401)
      await settled()
      if (manager.state === "waiting") await page.pass(last(states).delay + 1)
      assert.notEqual(manager.state, "closed")
    }
    manager.close()
    t.mock.timers.reset()
  }
})

test("4401 and 4410 in turn cause no flood of dials", async (t) => {
  const page = openPage(t)
  page.connect("/ws/", tokens())

  for (let tenth = 0; tenth < 600; tenth++) {
    await settled()
    if (page.socket.readyState === 0) {
      page.socket.accept()
      page.socket.push({ key: "websocket.ready" })
      page.socket.drop(tenth % 2 ? 4401 : 4410)
    }
    await page.pass(100)
  }

  assert.ok(page.sockets.length <= 20, `${page.sockets.length} dials`)
})

test("close code 4410 causes a token request at once, and a user who is signed in reconnects", async (t) => {
  const page = openPage(t)
  const ask = tokens()
  const { manager } = page.connect("/ws/", ask)
  await settled()
  page.socket.accept()
  page.tick(5000)

  for (const token of ["token-2", "token-3"]) {
    page.socket.drop(4410)
    await settled()
    page.socket.accept()
    page.tick(5000)

    assert.equal(manager.state, "open")
    assert.equal(page.socket.url, `wss://example.com/ws/${token}`)
  }
})

test("after 4410 and a refused token the manager asks again after 3 s, then stops as signed_out", async (t) => {
  const page = openPage(t)
  const asked = []
  const ask = () => {
    asked.push(Date.now())
    if (asked.length > 1) throw Object.assign(new Error("no"), { status: asked.length === 2 ? 401 : 403 })
    return "first"
  }
  const { manager, states, codes } = page.connect("/ws/", ask)
  await settled()
  page.socket.accept()

  page.socket.drop(4410)
  await settled()
  assert.equal(manager.state, "waiting")
  assert.equal(last(states).delay, 3000)
  await page.pass(2999)
  assert.equal(asked.length, 2)
  await page.pass(1)

  assert.equal(asked.length, 3)
  assert.equal(manager.state, "closed")
  assert.equal(last(states).reason, "signed_out")
  assert.deepEqual(codes(), ["signed_out"])
  assert.equal(page.timers.size, 0)
})

test("after 4410 and a new token, a later refusal stops at once", async (t) => {
  const page = openPage(t)
  let asked = 0
  const ask = () => {
    if (++asked === 3) throw Object.assign(new Error("no"), { status: 403 })
    return `token-${asked}`
  }
  const { manager, codes } = page.connect("/ws/", ask)
  await settled()
  page.socket.accept()
  page.socket.drop(4410)
  await settled()
  page.socket.accept()
  page.socket.drop()
  await page.pass(2300)

  assert.equal(manager.state, "closed")
  assert.deepEqual(codes(), ["token_refused"])
})

test("a network failure after 4410 does not replace the second token request", async (t) => {
  const page = openPage(t)
  const answers = ["first", new Error("network"), { status: 401 }, "last"]
  const ask = () => {
    const answer = answers.shift()
    if (typeof answer === "string") return answer
    throw answer
  }
  const { manager } = page.connect("/ws/", ask)
  await settled()
  page.socket.accept()
  page.socket.drop(4410)
  await settled()
  await page.pass(2300)
  await page.pass(3000)
  page.socket.accept()

  assert.equal(manager.state, "open")
  assert.equal(page.socket.url, "wss://example.com/ws/last")
})

test("options.shouldReconnect overrides the meaning of a close code", (t) => {
  const page = openPage(t)
  const seen = []
  const stay = page.connect("/a/", null, { shouldReconnect: (event) => (seen.push(event.code), true) })
  page.socket.drop(4403)
  const go = page.connect("/b/", null, { shouldReconnect: () => false })
  page.socket.drop(1006)
  const shrug = page.connect("/c/", null, { shouldReconnect: () => undefined })
  page.socket.drop(4403)

  assert.deepEqual(seen, [4403])
  assert.equal(stay.manager.state, "waiting")
  assert.equal(go.manager.state, "closed")
  assert.equal(last(go.states).reason, "declined")
  assert.equal(shrug.manager.state, "closed")
})

test("an error of options.shouldReconnect is reported, and the code keeps its meaning", (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect("/ws/", null, {
    shouldReconnect() {
      throw new Error("mine")
    },
  })

  page.socket.drop(1006)

  assert.equal(manager.state, "waiting")
  assert.deepEqual(codes(), ["handler_failed"])
})

const moments = {
  "while a token is requested": () => {},
  "while dialling": async () => settled(),
  "while open": async (page) => {
    await settled()
    page.socket.accept()
  },
  "while waiting": async (page) => {
    await settled()
    page.socket.drop()
  },
}

for (const [moment, reach] of Object.entries(moments)) {
  test(`close() ${moment} leaves no socket and no timer`, async (t) => {
    const page = openPage(t)
    const { manager, states, errors } = page.connect("/ws/", tokens())
    manager.request({ type: "a" }).catch(() => {})
    manager.sendJSON({ type: "b" })
    await reach(page)
    errors.length = 0

    manager.close()
    manager.close()
    assert.equal(page.timers.size, 0)
    await page.pass(30000)

    assert.equal(manager.state, "closed")
    assert.equal(states.filter(({ state }) => state === "closed").length, 1)
    assert.ok(page.sockets.every((socket) => socket.readyState >= 2))
    assert.ok(page.sockets.length <= 1)
    assert.ok(errors.every(({ code }) => code === "closed"))
  })

  test(`reconnect() ${moment} dials once more at once`, async (t) => {
    const page = openPage(t)
    const { manager } = page.connect("/ws/", tokens())
    await reach(page)
    const before = page.sockets.length

    manager.reconnect()
    assert.equal(manager.state, "connecting")
    await settled()
    page.socket.accept()
    await page.pass(30000)

    assert.equal(manager.state, "open")
    assert.equal(page.sockets.length, before + 1)
    assert.ok(page.sockets.slice(0, -1).every((socket) => socket.readyState >= 2))
  })
}

test("reconnect() counts attempts from one again", (t) => {
  const page = openPage(t)
  const { manager, states } = page.connect()
  for (let dial = 0; dial < 5; dial++) {
    page.socket.drop()
    page.tick(20000)
  }

  manager.reconnect()
  assert.equal(last(states).attempt, 1)
  page.socket.drop()
  assert.equal(last(states).delay, 1700)
})

test("reconnect() right after a constructor that threw makes one dial", async (t) => {
  const page = openPage(t)
  globalThis.WebSocket = class {
    constructor() {
      throw new Error("no")
    }
  }
  const { manager } = page.connect()
  globalThis.WebSocket = page.FakeSocket
  manager.reconnect()
  await settled()

  assert.equal(manager.state, "connecting")
  assert.equal(page.sockets.length, 1)
})

test("reconnect() works from closed", (t) => {
  const page = openPage(t)
  const { manager, states } = page.connect()
  page.socket.drop(4403)

  manager.reconnect()
  page.socket.accept()

  assert.equal(manager.state, "open")
  assert.equal(states.at(-2).reason, "reconnect")
})

test("close() from inside a state handler wins", (t) => {
  const page = openPage(t)
  for (const wanted of ["connecting", "open", "waiting"]) {
    const manager = new WebSocketManager("/ws/")
    manager.on("state", ({ state }) => state === wanted && manager.close())
    page.socket.accept()
    page.socket.drop()
    page.tick(20000)

    assert.equal(manager.state, "closed", wanted)
    assert.equal(page.timers.size, 0, wanted)
    assert.ok(page.sockets.every((socket) => socket.readyState >= 2), wanted)
  }
})

for (const place of ["shouldReconnect", "backoff", "an error handler"]) {
  test(`close() from inside ${place} wins`, (t) => {
    const page = openPage(t)
    const close = () => manager.close()
    const manager = new WebSocketManager("/ws/", null, { [place]: close })
    if (place === "an error handler") manager.on("error", close)
    page.socket.accept()
    manager.sendJSON({ type: "a" }, () => {})
    page.socket.drop()
    page.tick(20000)

    assert.equal(manager.state, "closed")
    assert.equal(page.timers.size, 0)
    assert.equal(page.sockets.length, 1)
  })
}

test("reconnect() from inside shouldReconnect wins over a code that stops", (t) => {
  const page = openPage(t)
  const manager = new WebSocketManager("/ws/", null, { shouldReconnect: () => manager.reconnect() })
  page.socket.accept()

  page.socket.drop(4403)

  assert.equal(manager.state, "connecting")
  assert.equal(page.sockets.length, 2)
})

test("with an error handler nothing is written to the console", async (t) => {
  const page = openPage(t)
  const written = ["log", "debug", "info", "warn", "error"].map((name) => t.mock.method(console, name, () => {}))
  const manager = new WebSocketManager("/ws/", () => Promise.reject(new Error("no")))
  manager.on("state", () => {
    throw new Error("mine")
  })
  manager.on("error", () => {
    throw new Error("mine too")
  })
  await page.pass(5000)
  manager.close()

  assert.ok(written.every(({ mock }) => mock.callCount() === 0))
})

/** A list that receives what is written to the console, as [method, ...arguments]. */
function watchConsole(t) {
  const written = []
  for (const name of ["log", "debug", "info", "warn", "error"]) {
    t.mock.method(console, name, (...all) => written.push([name, ...all]))
  }
  return written
}

/** Cause an error of the client, an error of the server, an error of a handler, and a stop. */
function causeErrors(page, manager) {
  page.socket.accept()
  manager.addMessageListener("note", () => {
    throw new Error("mine")
  })
  manager.sendJSON({ type: "forgotten" })
  page.socket.push({ key: "websocket.error", error: { code: "unknown_type", message: "No method" } })
  page.socket.push([])
  page.socket.push({ key: "note" })
  page.socket.drop(4403)
}

test("an error without a handler is written once to the console, and nothing else is", (t) => {
  const page = openPage(t)
  const written = watchConsole(t)

  causeErrors(page, new WebSocketManager("/ws/"))

  assert.deepEqual(written.map(([name, who, { code }]) => [name, who, code]), [
    ["error", "WebSocketManager", "unknown_type"],
    ["error", "WebSocketManager", "bad_message"],
    ["error", "WebSocketManager", "handler_failed"],
    ["error", "WebSocketManager", "refused"],
  ])
  assert.ok(written.every(([, , error]) => error instanceof WebSocketManager.WebSocketManagerError))
  assert.equal(written[0][2].message, "No method")
  assert.equal(written[2][2].cause.message, "mine")
})

for (const [name, options] of [["logger: false", { logger: false }], ["a logger without methods", { logger: {} }]]) {
  test(`with ${name} nothing is written to the console`, (t) => {
    const page = openPage(t)
    const written = watchConsole(t)

    causeErrors(page, new WebSocketManager("/ws/", null, options))

    assert.deepEqual(written, [])
  })
}

test("an error that a handler or a caller receives is not written to the console", async (t) => {
  const page = openPage(t)
  const written = watchConsole(t)
  const manager = new WebSocketManager("/ws/")
  page.socket.accept()
  const received = []
  const undo = manager.on("error", ({ code }) => received.push(code), { once: true })
  page.socket.push([])
  undo()
  const call = manager.request({ type: "a" })
  page.socket.push({ key: page.socket.sent[0].reply_key, error: { code: "invalid" } })
  await assert.rejects(call, { code: "invalid" })

  assert.deepEqual(received, ["bad_message"])
  assert.deepEqual(written, [])
  page.socket.push([])
  assert.equal(written.length, 1, "the handler is removed")
  manager.close()
})

test("in a runtime without a console an error changes nothing", (t) => {
  const page = openPage(t)
  const { console } = globalThis
  t.after(() => (globalThis.console = console))
  const manager = new WebSocketManager("/ws/")
  delete globalThis.console

  causeErrors(page, manager)

  assert.equal(manager.state, "closed")
})

test("a logger receives states and errors, and may throw", (t) => {
  const page = openPage(t)
  const received = []
  const logger = {
    debug: (name, event) => received.push(event.state),
    error: (name, error) => {
      received.push(error.code)
      throw new Error("broken logger")
    },
  }
  page.connect("/ws/", null, { logger })
  page.socket.accept()
  page.socket.push([])
  page.socket.drop(4403)

  assert.deepEqual(received, ["connecting", "open", "bad_message", "closed", "refused"])
})

test("after a listener changes the state, the others get only the last event", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const received = []
  manager.on("state", ({ state }) => state === "waiting" && manager.close())
  manager.on("state", ({ state }) => received.push(state))
  page.socket.accept()

  page.socket.drop()

  assert.deepEqual(received, ["open", "closed"])
})

test("options.backoff may be 0, and a hidden page still does not dial", async (t) => {
  const page = openPage(t)
  const { manager, states } = page.connect("/ws/", null, { backoff: () => 0 })
  page.socket.drop()
  page.tick(1)
  assert.equal(page.sockets.length, 2)

  page.show(false)
  page.socket.drop()
  await page.pass(1000)

  assert.equal(page.sockets.length, 2)
  assert.deepEqual([manager.state, last(states).reason], ["waiting", "hidden"])
})

for (const code of [4401, 4410]) {
  test(`${code} causes a token request at once, also after an earlier loss and in a hidden page`, async (t) => {
    const page = openPage(t)
    const ask = tokens("u-1")
    page.connect("/ws/", ask)
    await settled()
    page.socket.drop()
    await page.pass(1700)
    page.socket.accept()
    assert.equal(ask.questions.length, 2)

    page.show(false)
    page.socket.drop(code)
    await settled()

    assert.equal(ask.questions.length, 3)
  })
}

test("reconnect() resets the count of 4410", async (t) => {
  const page = openPage(t)
  let answer = "wst_a"
  const { manager, states } = page.connect("/ws/", async () => {
    if (typeof answer === "string") return answer
    throw answer
  })
  await settled()
  page.socket.accept()
  answer = Object.assign(new Error("no"), { status: 403 })
  page.socket.drop(4410)
  await settled()
  assert.equal(last(states).reason, "signed_out")

  manager.reconnect()
  await settled()

  assert.equal(last(states).reason, "token_refused", "not signed_out, because no request after 4410 was refused")
})

test("a code that stops keeps its reason when shouldReconnect returns false", (t) => {
  const page = openPage(t)
  const { states } = page.connect("/ws/", null, { shouldReconnect: () => false })
  page.socket.accept()

  page.socket.drop(4403)

  assert.equal(last(states).reason, "refused")
})
