import assert from "node:assert/strict"
import { test } from "node:test"

import { fakeEndpoint, holding, openPage, settled, tokens } from "./support.mjs"

const ready = (page, identity) => page.socket.push({ key: "websocket.ready", identity })
const types = (page) => page.socket.sent.map(({ type }) => type)

// The server refuses a token after the handshake, so the queue waits this long (ms).
const PROOF = 100

/** Open, drop, queue "queued", and open again. */
async function reopen(page, manager, afterFirstOpen = () => {}) {
  await settled()
  page.socket.accept()
  page.tick(PROOF)
  afterFirstOpen()
  page.socket.drop()
  manager.sendJSON({ type: "queued" })
  await page.pass(1700)
  if (manager.state !== "connecting") return
  page.socket.accept()
  page.tick(PROOF)
}

/** A token function whose user changes after the first token. */
function changingUser() {
  const users = ["u-1", "u-2"]
  return tokens(() => (users.length > 1 ? users.shift() : users[0]))
}

test("after a reconnect the queue is sent if the token function returns the same identity", async (t) => {
  const page = openPage(t)
  const { manager, errors } = page.connect("/ws/", tokens("u-1"))
  await reopen(page, manager)

  assert.deepEqual(types(page), ["queued"])
  assert.deepEqual(errors, [])
})

test("after a reconnect the queue is sent if the tokenURL answers with the same identity", async (t) => {
  const page = openPage(t)
  fakeEndpoint(t, { body: { token: "wst_b", identity: "u-1" } }, { body: { token: "wst_c", identity: "u-1" } })
  const { manager } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await reopen(page, manager)

  assert.deepEqual(types(page), ["queued"])
})

test("options.identity is the user of a page with a token string", async (t) => {
  for (const [identity, sent, codes] of [
    ["u-1", ["queued"], []],
    ["u-2", [], ["user_changed", "user_changed"]],
  ]) {
    const page = openPage(t)
    fakeEndpoint(t, { body: { token: "wst_b", identity } })
    const connection = page.connect("/ws/", "wst_a", { tokenURL: "/websocket/token/", identity: "u-1" })
    await reopen(page, connection.manager)

    assert.deepEqual(page.sockets.flatMap((socket) => socket.sent.map(({ type }) => type)), sent)
    assert.deepEqual(connection.codes(), codes)
    t.mock.restoreAll()
    t.mock.timers.reset()
  }
})

test("the queue waits for websocket.ready if no other identity is known, and new messages follow it", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  await reopen(page, manager, () => ready(page, "u-1"))

  assert.equal(manager.state, "connecting")
  assert.equal(manager.sendJSON({ type: "meanwhile" }), false)
  assert.deepEqual(types(page), [])
  ready(page, "u-1")

  assert.deepEqual(types(page), ["queued", "meanwhile"])
  assert.equal(manager.sendJSON({ type: "after" }), true)
  assert.equal(page.timers.size, 1, "only the timer of the next ping")
})

test("the queue waits 1 s for websocket.ready, then it is rejected and the manager continues", async (t) => {
  const page = openPage(t)
  const { manager, states, codes } = page.connect()
  await reopen(page, manager, () => ready(page, "u-1"))

  page.tick(999 - PROOF)
  assert.deepEqual(codes(), [])
  page.tick(1)

  assert.deepEqual(codes(), ["disconnected"])
  assert.deepEqual(states.map(({ state }) => state), ["open", "waiting", "connecting", "open"])
  assert.equal(manager.sendJSON({ type: "after" }), true)
  assert.deepEqual(types(page), ["after"])
})

test("close() leaves no timer while the queue waits for websocket.ready", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  await reopen(page, manager, () => ready(page, "u-1"))

  manager.close()

  assert.equal(page.timers.size, 0)
})

test("websocket.ready of a first or repeated connection affects no call", async (t) => {
  const page = openPage(t)
  const { manager, errors } = page.connect()
  page.socket.accept()
  const promise = manager.request({ type: "asked" })
  ready(page, "u-1")
  ready(page, "u-1")
  page.socket.push({ key: page.socket.sent[0].reply_key, data: 1 })

  assert.equal(await promise, 1)
  assert.deepEqual(errors, [])
})

test("nothing is sent on a closing socket when the wait for websocket.ready ends", async (t) => {
  const page = openPage(t)
  const { manager, errors } = page.connect("/ws/", null, { identity: "u-1" })
  await reopen(page, manager)
  page.socket.readyState = 2
  page.tick(1000)
  page.socket.drop()
  await page.pass(2300)
  page.socket.accept()
  ready(page, "u-1")

  assert.deepEqual(types(page), ["queued"])
  assert.deepEqual(errors, [])
})

test("options.identity counts if the server sends no identity, else that of the server counts", async (t) => {
  for (const [identify, sent, codes] of [
    [(page) => page.tick(1000), ["queued"], []],
    [(page) => ready(page, "u-1"), ["queued"], []],
    [(page) => ready(page, "u-2"), [], ["user_changed", "user_changed"]],
  ]) {
    const page = openPage(t)
    const connection = page.connect("/ws/", null, { identity: "u-1" })
    await reopen(page, connection.manager)
    assert.deepEqual(types(page), [])
    identify(page)

    assert.deepEqual(types(page), sent)
    assert.deepEqual(connection.codes(), codes)
    connection.manager.close()
    t.mock.timers.reset()
    t.mock.restoreAll()
  }
})

test("without any identity the queue is rejected as disconnected", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect()
  await reopen(page, manager)

  assert.deepEqual(types(page), [])
  assert.deepEqual(codes(), ["disconnected"])
  assert.equal(manager.sendJSON({ type: "after" }), true)
})

test("without an identity a message from the handler of open is sent", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  manager.on("state", ({ state }) => state === "open" && manager.sendJSON({ type: "subscribe" }))
  await reopen(page, manager)

  assert.deepEqual(types(page), ["subscribe"])
})

test("a new identity does not prove the user of the queue", async (t) => {
  const page = openPage(t)
  let identity
  let count = 0
  const ask = () => ({ token: `wst_${++count}`, identity })
  const { manager, codes } = page.connect("/ws/", ask)
  await reopen(page, manager, () => (identity = "u-1"))

  assert.deepEqual(types(page), [])
  assert.deepEqual(codes(), ["disconnected"])
})

test("an identity that was unknown in between does not prove the user of the queue", async (t) => {
  const page = openPage(t)
  const identities = ["u-1", null, "u-1"]
  const { manager, codes } = page.connect("/ws/", tokens(() => identities.shift()))
  await reopen(page, manager)
  page.tick(1000)
  assert.deepEqual(codes(), ["disconnected"])

  page.socket.drop()
  manager.sendJSON({ type: "queued" })
  await page.pass(2300)
  page.socket.accept()
  page.tick(PROOF)

  assert.deepEqual(types(page), [])
  assert.deepEqual(codes(), ["disconnected", "disconnected"])
})

test("null is no identity", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect("/ws/", tokens(() => null), { identity: null })
  await reopen(page, manager, () => ready(page, null))

  assert.deepEqual(codes(), ["disconnected"])
  assert.equal(manager.state, "open")
})

test("another user's token stops the manager before the dial: queue and requests are user_changed", async (t) => {
  const page = openPage(t)
  const { manager, states, codes } = page.connect("/ws/", changingUser())
  await settled()
  page.socket.accept()
  page.socket.drop()
  manager.sendJSON({ type: "queued" })
  const rejected = assert.rejects(manager.request({ type: "asked" }), { code: "user_changed" })
  await page.pass(1700)

  await rejected
  assert.equal(page.sockets.length, 1)
  assert.equal(manager.state, "closed")
  assert.equal(states.at(-1).reason, "user_changed")
  assert.deepEqual(codes(), ["user_changed", "user_changed"])
  assert.equal(page.timers.size, 0)
})

test("another user in websocket.ready stops the manager, even when it comes late", async (t) => {
  for (const delay of [0, 5000]) {
    const page = openPage(t)
    const { manager } = page.connect()
    await reopen(page, manager, () => ready(page, "u-1"))
    page.tick(delay)
    const ends = []
    manager.request({ type: "asked" }).catch(({ code }) => ends.push(code))
    ready(page, "u-2")
    await settled()

    assert.equal(manager.state, "closed")
    assert.equal(page.socket.readyState, 2)
    assert.equal(page.timers.size, 0)
    assert.deepEqual(ends, ["user_changed"])
    assert.equal(types(page).includes("queued"), false)
    t.mock.timers.reset()
    t.mock.restoreAll()
  }
})

test("options.allowUserChange rejects the queue and continues", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect("/ws/", changingUser(), { allowUserChange: true })
  await reopen(page, manager)

  assert.equal(manager.state, "open")
  assert.deepEqual(codes(), ["user_changed", "user_changed"])
  assert.deepEqual(types(page), [])
  assert.equal(manager.sendJSON({ type: "after" }), true)

  page.socket.drop()
  manager.sendJSON({ type: "of the second user" })
  await page.pass(2300)
  page.socket.accept()
  page.tick(PROOF)
  assert.deepEqual(types(page), ["of the second user"])
})

test("reconnect() after user_changed continues as the new user", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", changingUser())
  await reopen(page, manager)
  assert.equal(manager.state, "closed")

  manager.reconnect()
  manager.sendJSON({ type: "of the second user" })
  await settled()
  page.socket.accept()
  page.tick(PROOF)

  assert.deepEqual(types(page), ["of the second user"])
})

test("the identity of the token counts more than that of websocket.ready", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", tokens("bob"))
  await reopen(page, manager, () => ready(page, "opaque"))
  ready(page, "opaque")

  assert.equal(manager.state, "open")
  assert.deepEqual(types(page), ["queued"])
})

for (const [name, token] of [
  ["no token", () => null],
  ["a token function", () => tokens()],
  ["a token string", () => "wst_a"],
]) {
  test(`with ${name}, a page with options.identity sends nothing if the server has another user`, async (t) => {
    const page = openPage(t)
    const { manager, codes } = page.connect("/ws/", token(), { identity: "ada" })
    manager.sendJSON({ type: "transfer" })
    await settled()
    page.socket.accept()
    page.tick(900)
    ready(page, "ben")

    assert.deepEqual(types(page), [])
    assert.equal(manager.state, "closed")
    assert.deepEqual(codes(), ["user_changed", "user_changed"])
  })
}

const ofAda = { socketPath: "/ws/", tokenUrl: "/token/", identity: "ada" }
const { identity: _, ...nobody } = ofAda
for (const [name, dataset, path, options, sent, codes] of [
  // A page without an identity cannot find out that its user has signed out.
  ["without an identity", nobody, null, {}, ["transfer"], []],
  ["with an identity", ofAda, null, {}, [], ["user_changed", "user_changed"]],
  ["with a second manager", ofAda, "/other/", { tokenURL: "/token/" }, [], ["user_changed", "user_changed"]],
  ["with another endpoint", ofAda, "/other/", { tokenURL: "/elsewhere/" }, ["transfer"], []],
]) {
  test(`a page ${name} whose first dial is another user's sends ${sent.length} of its messages`, async (t) => {
    const page = openPage(t, { document: holding(dataset) })
    fakeEndpoint(t, { body: { token: "wst_b", identity: "ben" } })
    const connection = page.connect(path, null, options)
    connection.manager.sendJSON({ type: "transfer" })
    await settled()
    page.socket?.accept()
    page.tick(PROOF)

    assert.deepEqual(page.sockets.flatMap((socket) => socket.sent.map(({ type }) => type)), sent)
    assert.deepEqual(connection.codes(), codes)
    assert.equal(connection.manager.state, codes.length ? "closed" : "open")
  })
}

for (const [name, token, tokenUrl] of [
  ["a token function that returns a string", () => tokens(), "/token/"],
  ["no token", () => null, ""],
]) {
  test(`with ${name}, the page's identity does not prove the user of the queue`, async (t) => {
    const page = openPage(t, { document: holding({ ...ofAda, tokenUrl }) })
    const { manager, codes } = page.connect(null, token())
    await reopen(page, manager, () => page.tick(1000))

    assert.equal(manager.state, "open")
    assert.deepEqual(types(page), [])
    assert.deepEqual(codes(), ["disconnected"])
  })
}

test("with a token function, the first connection of a page is compared with its identity", async (t) => {
  const page = openPage(t, { document: holding(ofAda) })
  const { manager, codes } = page.connect(null, tokens())
  manager.sendJSON({ type: "transfer" })
  await settled()
  page.socket.accept()
  page.tick(999)
  ready(page, "ben")

  assert.equal(manager.state, "closed")
  assert.deepEqual(types(page), [])
  assert.deepEqual(codes(), ["user_changed", "user_changed"])
})

for (const identity of [null, "ben"]) {
  test(`after another user's sign-in without a reload, identity: ${identity} replaces that of the page`, async (t) => {
    for (const [path, options] of [[null, {}], ["/other/", { tokenURL: "/token/" }]]) {
      const page = openPage(t, { document: holding(ofAda) })
      fakeEndpoint(t, { body: { token: "wst_b", identity: "ben" } }, { body: { token: "wst_c", identity: "ben" } })
      const { manager, codes } = page.connect(path, null, { ...options, identity })
      await reopen(page, manager)

      assert.equal(manager.state, "open")
      assert.deepEqual(types(page), ["queued"])
      assert.deepEqual(codes(), [])
      manager.close()
      t.mock.timers.reset()
      t.mock.restoreAll()
    }
  })
}

test("an empty identity is none: it stops no manager, and proves no user of a queue", async (t) => {
  for (const [dataset, options] of [[{ ...ofAda, identity: "" }, {}], [ofAda, { identity: "" }]]) {
    const page = openPage(t, { document: holding(dataset) })
    const { manager, codes } = page.connect(null, tokens(""), options)
    await reopen(page, manager)
    assert.deepEqual(types(page), [])
    assert.deepEqual(codes(), ["disconnected"])
    ready(page, "ada")

    assert.equal(manager.state, "open")
    manager.close()
    t.mock.timers.reset()
    t.mock.restoreAll()
  }
})

test("an empty identity of a token function is none", async (t) => {
  const page = openPage(t)
  let count = 0
  const { manager, codes } = page.connect("/ws/", () => ({ token: `wst_${++count}`, identity: "" }))
  await reopen(page, manager)
  ready(page, "u-1")

  assert.equal(manager.state, "open")
  assert.deepEqual(codes(), ["disconnected"])
})

test("a connection that is lost before websocket.ready does not change the user of the queue", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect()
  await reopen(page, manager, () => ready(page, "u-1"))
  page.socket.drop()
  await page.pass(2300)
  page.socket.accept()
  ready(page, "u-1")

  assert.deepEqual(types(page), ["queued"])
  assert.deepEqual(codes(), [])
})

test("messages can be sent in the handler of open", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect()
  const sent = []
  manager.on("state", ({ state }) => state === "open" && sent.push(manager.sendJSON({ type: "subscribe" })))
  await reopen(page, manager, () => ready(page, "u-1"))
  assert.equal(manager.state, "connecting")

  page.tick(1000)

  assert.equal(manager.state, "open")
  assert.deepEqual(types(page), ["subscribe"])
  assert.deepEqual(sent, [true, true])
  assert.deepEqual(codes(), ["disconnected"])
})
