import assert from "node:assert/strict"
import { test } from "node:test"

import { fakeEndpoint, openPage, settled, tokens, WebSocketManager } from "./support.mjs"

const SECOND = 1000
const MINUTE = 60 * SECOND

const wakes = {
  "becoming visible": (page) => page.show(true),
  "resume": (page) => page.document.dispatch("resume"),
  "pageshow": (page) => page.window.dispatch("pageshow", { persisted: true }),
  "online": (page) => page.window.dispatch("online"),
}

const leavings = {
  "freeze": (page) => page.document.dispatch("freeze"),
  "pagehide": (page) => page.window.dispatch("pagehide", { persisted: true }),
}

function wakeInEveryWay(page) {
  for (const wake of Object.values(wakes)) wake(page)
}

/** A page with a token function and an open socket, which has received websocket.ready. */
async function openReady(t, options) {
  const page = openPage(t)
  const ask = tokens("u-1")
  const connection = page.connect("/ws/", ask, options)
  await settled()
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  return { page, asked: ask.questions, ...connection }
}

const pings = (page) => page.socket.sent.filter(({ type }) => type === "websocket.ping").length
const shown = (states) => states.map(({ state, reason, delay }) => [state, reason, delay])

for (const [name, wake] of Object.entries(wakes)) {
  test(`${name}: an open connection has 3 s to answer`, async (t) => {
    const { page, manager, states } = await openReady(t)
    wake(page)
    assert.equal(pings(page), 1)
    page.socket.push({ key: "websocket.pong" })
    await page.pass(10 * SECOND)
    assert.equal(manager.state, "open")

    wake(page)
    await page.pass(3 * SECOND - 1)
    assert.equal(manager.state, "open")
    await page.pass(1)

    assert.equal(manager.state, "waiting")
    assert.equal(states.at(-1).reason, "timeout")
  })

  test(`${name}: a waiting manager dials at once`, async (t) => {
    const { page, manager, states, asked } = await openReady(t)
    page.socket.drop()
    assert.equal(manager.state, "waiting")

    wake(page)
    await settled()

    assert.equal(asked.length, 2)
    assert.equal(page.sockets.length, 2)
    assert.deepEqual(shown(states).at(-1), ["connecting", "wake", 0])
  })

  test(`${name}: a running dial is not changed`, async (t) => {
    const page = openPage(t)
    const ask = tokens()
    const { manager } = page.connect("/ws/", ask)
    wake(page)
    await settled()
    wake(page)
    page.socket.accept()

    assert.equal(ask.questions.length, 1)
    assert.equal(page.sockets.length, 1)
    assert.equal(manager.state, "open")
  })
}

test("simultaneous wake events cause one dial and one token call", async (t) => {
  const { page, asked } = await openReady(t)
  page.socket.drop()

  wakeInEveryWay(page)
  await settled()
  wakeInEveryWay(page)
  await page.pass(5 * SECOND)

  assert.equal(asked.length, 2)
  assert.equal(page.sockets.length, 2)
})

test("simultaneous wake events cause one ping", async (t) => {
  const { page } = await openReady(t)

  wakeInEveryWay(page)
  wakeInEveryWay(page)

  assert.equal(pings(page), 1)
})

test("a wake during a ping limits its answer to 3 s, and further wakes do not extend the limit", async (t) => {
  const { page, manager } = await openReady(t)
  await page.pass(27 * SECOND)
  for (let second = 0; second < 3; second++) {
    assert.equal(manager.state, "open")
    page.show(true)
    await page.pass(SECOND)
  }

  assert.equal(manager.state, "waiting")
})

test("a sleep of an hour during a dial is followed by one dial, whichever event comes first", async (t) => {
  for (const order of [["wake", "timers"], ["timers", "wake"]]) {
    const page = openPage(t)
    const ask = tokens()
    const { manager } = page.connect("/ws/", ask)
    await settled()
    page.sleep(60 * MINUTE)
    for (const what of order) what === "wake" ? wakeInEveryWay(page) : page.tick(0)
    await settled()
    page.socket.accept()

    assert.equal(ask.questions.length, 2)
    assert.equal(page.sockets.length, 2)
    assert.equal(manager.state, "open")
    manager.close()
    t.mock.timers.reset()
  }
})

test("a page that becomes hidden sends no ping, and stays connected", async (t) => {
  const { page, manager } = await openReady(t)
  page.show(false)
  assert.equal(pings(page), 0)

  for (let n = 0; n < 10; n++) {
    await page.pass(25 * SECOND)
    page.socket.push({ key: "websocket.pong" })
  }

  assert.equal(manager.state, "open")
  assert.equal(page.sockets.length, 1)
})

test("a hidden page does not dial, its event has the reason, and it dials at once when visible", async (t) => {
  const { page, states, asked } = await openReady(t)
  page.show(false)
  page.socket.drop()
  await page.pass(60 * MINUTE)

  assert.equal(asked.length, 1)
  assert.equal(page.sockets.length, 1)
  assert.deepEqual(shown(states).slice(-2), [
    ["waiting", "disconnected", 1700],
    ["waiting", "hidden", Infinity],
  ])
  assert.equal(page.timers.size, 0)
  page.show(true)
  await settled()
  assert.equal(asked.length, 2)
  assert.equal(page.sockets.length, 2)
})

for (const [name, wake] of Object.entries(wakes)) {
  if (name === "becoming visible") continue
  test(`${name}: a page that is still hidden does not dial`, async (t) => {
    const { page, asked } = await openReady(t)
    page.show(false)
    page.socket.drop()
    await page.pass(MINUTE)

    wake(page)
    await page.pass(MINUTE)

    assert.equal(asked.length, 1)
  })
}

test("document.hidden is read when the dial is due", async (t) => {
  const { page, asked } = await openReady(t)
  page.document.hidden = true
  page.socket.drop()
  page.document.hidden = false
  await page.pass(1700)
  assert.equal(asked.length, 2)

  page.socket.drop()
  page.document.hidden = true
  await page.pass(MINUTE)
  assert.equal(asked.length, 2)
})

test("the first dial and reconnect() also work in a hidden page", async (t) => {
  const page = openPage(t, { document: { hidden: true } })
  const { manager } = page.connect()
  assert.equal(page.sockets.length, 1)
  page.socket.drop()
  await page.pass(MINUTE)

  manager.reconnect()

  assert.equal(page.sockets.length, 2)
})

test("offline gives an open connection 3 s to answer", async (t) => {
  const { page, manager } = await openReady(t)
  page.window.dispatch("offline")
  assert.equal(pings(page), 1)
  page.socket.push({ key: "websocket.pong" })
  await page.pass(20 * SECOND)
  assert.equal(manager.state, "open", "a server on the same machine still answers")

  page.window.dispatch("offline")
  await page.pass(3 * SECOND)

  assert.equal(manager.state, "waiting")
})

test("while offline the dials continue with the usual waits, and online resets them", async (t) => {
  const { page, states } = await openReady(t)
  page.window.dispatch("offline")
  page.socket.drop()
  const begun = page.sockets.length
  for (let second = 0; second < 60; second++) {
    page.window.dispatch("offline")
    if (page.socket.readyState === 0) page.socket.drop()
    await page.pass(SECOND)
  }
  const dials = page.sockets.length - begun
  assert.ok(dials > 3 && dials < 15, `${dials} dials`)
  if (page.socket.readyState === 0) page.socket.drop()
  assert.ok(states.at(-1).delay > 7000)

  page.window.dispatch("online")
  await settled()
  assert.equal(page.sockets.length - begun, dials + 1)
  page.socket.drop()
  assert.equal(states.at(-1).delay, 1700)
})

test("no wake shortens a wait that the server has requested", async (t) => {
  for (const [name, wait, refuse] of [
    ["4429", 30, async (page) => page.socket.drop(4429)],
    ["Retry-After", 7, async (page) => (page.socket.drop(), await page.pass(1700))],
  ]) {
    const page = openPage(t)
    const requests = fakeEndpoint(
      t,
      { body: { token: "wst_a" } },
      ...(name === "4429" ? [] : [{ status: 503, headers: { "Retry-After": "7" } }]),
      { body: { token: "wst_b" } },
    )
    const { states } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
    await settled()
    page.socket.accept()
    await refuse(page)
    const asked = requests.length

    for (let second = 0; second < wait; second++) {
      assert.equal(requests.length, asked, name)
      wakeInEveryWay(page)
      assert.equal(states.at(-1).delay, (wait - second) * SECOND, name)
      await page.pass(SECOND)
    }

    assert.equal(requests.length, asked + 1, name)
    t.mock.restoreAll()
    t.mock.timers.reset()
  }
})

test("no wake shortens the 3 s before the second token request after 4410", async (t) => {
  const page = openPage(t)
  let asked = 0
  const ask = () => {
    if (++asked > 1) throw Object.assign(new Error("no"), { status: 401 })
    return "first"
  }
  page.connect("/ws/", ask)
  await settled()
  page.socket.accept()
  page.socket.drop(4410)
  await settled()
  assert.equal(asked, 2)

  wakeInEveryWay(page)
  await page.pass(3 * SECOND - 1)
  assert.equal(asked, 2)
  await page.pass(1)
  assert.equal(asked, 3)
})

for (const [name, leave] of Object.entries(leavings)) {
  test(`${name}: the connection is closed, its calls are disconnected, and the next dial waits for the page`, async (t) => {
    const { page, manager, states, asked } = await openReady(t)
    const [socket] = page.sockets
    const rejected = assert.rejects(manager.request({ type: "a" }), { code: "disconnected" })
    leave(page)

    assert.equal(socket.readyState, 2)
    assert.deepEqual(shown(states).at(-1), ["waiting", "hidden", Infinity])
    await rejected
    page.sleep(60 * MINUTE)
    await page.pass(60 * MINUTE)
    assert.equal(asked.length, 1)
    wakeInEveryWay(page)
    await settled()
    page.socket.accept()
    assert.equal(asked.length, 2)
    assert.equal(page.sockets.length, 2)
    assert.equal(manager.state, "open")
  })

  test(`${name}: a running dial is ended, and its token is never used`, async (t) => {
    const page = openPage(t)
    const asked = []
    page.connect("/ws/", ({ signal }) => new Promise((answer) => asked.push({ signal, answer })))
    leave(page)
    await settled()
    assert.equal(asked[0].signal.aborted, true)
    asked[0].answer("late")
    await page.pass(MINUTE)
    assert.equal(page.sockets.length, 0)

    page.document.dispatch("resume")
    asked[1].answer("fresh")
    await settled()

    assert.deepEqual(page.sockets.map(({ url }) => url), ["wss://example.com/ws/fresh"])
  })

  test(`${name}: the queue is kept, and a message times out by the clock`, async (t) => {
    const page = openPage(t)
    const { manager, codes } = page.connect("/ws/", tokens("u-1"))
    manager.sendJSON({ type: "old" })
    await page.pass(50 * SECOND)
    manager.sendJSON({ type: "new" })
    leave(page)
    page.sleep(20 * SECOND)
    page.document.dispatch("resume")
    await settled()
    page.socket.accept()
    page.tick(100)

    assert.deepEqual(codes(), ["timeout"])
    assert.deepEqual(page.socket.sent, [{ type: "new" }])
  })

  test(`${name}: a connection without a source of new tokens is kept`, async (t) => {
    const page = openPage(t)
    const { manager } = page.connect("/ws/", "wst_a")
    page.socket.accept()
    await page.pass(100)

    leave(page)

    assert.equal(manager.state, "open")
    assert.equal(page.socket.readyState, 1)
  })

  test(`${name}: the wait for the next dial stops`, async (t) => {
    const { page, states, asked } = await openReady(t)
    page.socket.drop()
    leave(page)
    await page.pass(MINUTE)

    assert.equal(asked.length, 1)
    assert.deepEqual(shown(states).at(-1), ["waiting", "hidden", Infinity])
    assert.equal(page.timers.size, 0)
  })
}

test("a page from the back/forward cache keeps the wait that the server has requested", async (t) => {
  const { page, asked } = await openReady(t)
  page.socket.drop(4429)
  page.window.dispatch("pagehide", { persisted: true })
  await page.pass(5 * SECOND)

  page.window.dispatch("pageshow", { persisted: true })
  await page.pass(25 * SECOND - 1)
  assert.equal(asked.length, 1)
  await page.pass(1)

  assert.equal(asked.length, 2)
})

const moments = {
  "while a token is requested": async () => {},
  "while dialling": () => settled(),
  "while open": async (page) => {
    await settled()
    page.socket.accept()
    page.socket.push({ key: "websocket.ready", identity: "u-1" })
  },
  "during a ping": async (page) => {
    await moments["while open"](page)
    await page.pass(26 * SECOND)
  },
  "while waiting": async (page) => {
    await settled()
    page.socket.drop()
  },
  "while waiting hidden": async (page) => {
    page.show(false)
    await settled()
    page.socket.drop()
    await page.pass(MINUTE)
  },
  "while frozen": async (page) => {
    await settled()
    page.document.dispatch("freeze")
  },
  "after a code that stops": async (page) => {
    await settled()
    page.socket.drop(4403)
  },
}

for (const [moment, reach] of Object.entries(moments)) {
  test(`close() ${moment} leaves no socket, timer or page listener, and no wake changes that`, async (t) => {
    const page = openPage(t)
    const ask = tokens("u-1")
    const { manager, states } = page.connect("/ws/", ask)
    assert.ok(page.listening > 0)
    await reach(page)

    manager.close()
    assert.equal(page.listening, 0)
    assert.equal(page.timers.size, 0)
    const asked = ask.questions.length
    page.document.hidden = false
    for (const event of Object.values({ ...leavings, ...wakes })) event(page)
    await page.pass(30 * SECOND)

    assert.equal(manager.state, "closed")
    assert.equal(states.at(-1).state, "closed")
    assert.equal(ask.questions.length, asked)
    assert.ok(page.sockets.every(({ readyState }) => readyState >= 2))
  })

  test(`reconnect() ${moment} adds the page listeners once`, async (t) => {
    const page = openPage(t)
    const ask = tokens("u-1")
    const { manager } = page.connect("/ws/", ask)
    const listening = page.listening
    await reach(page)

    manager.reconnect()
    manager.reconnect()

    assert.equal(page.listening, listening)
    page.document.hidden = false
    await settled()
    page.socket.drop()
    const asked = ask.questions.length
    wakeInEveryWay(page)
    await settled()
    assert.equal(ask.questions.length, asked + 1)
    manager.close()
    assert.equal(page.listening, 0)
  })
}

test("reconnect() from inside the event of close() adds the page listeners again", async (t) => {
  const { page, manager } = await openReady(t)
  const { listening } = page
  manager.on("state", ({ state }) => state === "closed" && manager.reconnect(), { once: true })

  manager.close()

  assert.equal(manager.state, "connecting")
  assert.equal(page.listening, listening)
})

const emissions = {
  "of a frozen page": ["hidden", (page) => page.document.dispatch("freeze")],
  "of a wait in a hidden page": ["hidden", (page) => (page.show(false), page.socket.drop(), page.pass(1700))],
  "of a wake": ["wake", (page) => (page.socket.drop(), page.show(true))],
}

for (const [name, [reason, cause]] of Object.entries(emissions)) {
  for (const act of ["close", "reconnect"]) {
    test(`${act}() from inside the event ${name} wins`, async (t) => {
      const { page, manager, asked } = await openReady(t)
      manager.on("state", (event) => event.reason === reason && manager[act]())
      await cause(page)
      await settled()

      assert.equal(manager.state, act === "close" ? "closed" : "connecting")
      assert.equal(page.timers.size, act === "close" ? 0 : 1)
      assert.equal(page.listening > 0, act !== "close")
      assert.equal(page.sockets.filter(({ readyState }) => readyState < 2).length, act === "close" ? 0 : 1)
      assert.ok(asked.length <= 3)
    })
  }
}

for (const act of ["close", "reconnect"]) {
  test(`${act}() from inside the error of a call that is overdue at a wake wins`, async (t) => {
    const page = openPage(t)
    const ask = tokens()
    const { manager } = page.connect("/ws/", ask)
    manager.sendJSON({ type: "a" })
    await settled()
    page.socket.drop()
    manager.on("error", ({ code }) => code === "timeout" && manager[act]())
    page.sleep(60 * MINUTE)

    wakeInEveryWay(page)
    await page.pass(0)

    assert.equal(manager.state, act === "close" ? "closed" : "connecting")
    assert.equal(ask.questions.length, act === "close" ? 1 : 2)
    assert.equal(page.timers.size, act === "close" ? 0 : 1)
  })
}

test("a worker has the network events of a window and no document", async (t) => {
  const page = openPage(t, { document: null })
  const { manager } = page.connect()
  assert.ok(page.listening > 0)
  page.socket.drop()

  page.window.dispatch("online")

  assert.equal(page.sockets.length, 2)
  page.socket.drop()
  page.tick(1700)
  assert.equal(page.sockets.length, 3)
  manager.close()
  assert.equal(page.listening, 0)
})

test("the manager works without window and document", async (t) => {
  const page = openPage(t, { document: null })
  delete globalThis.addEventListener
  delete globalThis.removeEventListener
  const { manager } = page.connect("wss://example.com/ws/")
  page.socket.drop()
  page.tick(1700)
  page.socket.accept()

  assert.equal(manager.state, "open")
  assert.equal(page.listening, 0)
  manager.close()
})

test("loading the script adds no listener; only a manager does", (t) => {
  const page = openPage(t)
  assert.equal(page.listening, 0)

  const manager = new WebSocketManager("/ws/")

  assert.ok(page.listening > 0)
  manager.close()
})
