import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage } from "./support.mjs"

function openManager(t) {
  const page = openPage(t)
  const connection = page.connect()
  page.socket.accept()
  return { page, ...connection, push: (key) => page.socket.push({ key }) }
}

test("a push reaches the listeners of its key as the whole message, in order", (t) => {
  const { page, manager } = openManager(t)
  const received = []
  manager.addMessageListener("news", (message) => received.push(["first", message]))
  manager.addMessageListener("news", (message) => received.push(["second", message]))
  manager.addMessageListener("other", (message) => received.push(["other", message]))

  page.socket.push({ key: "news", data: 1, error: "mine" })

  const message = { key: "news", data: 1, error: "mine" }
  assert.deepEqual(received, [["first", message], ["second", message]])
})

test("listeners survive reconnects", (t) => {
  const { page, manager, push } = openManager(t)
  let received = 0
  manager.addMessageListener("news", () => received++)

  page.socket.drop()
  page.tick(1700)
  page.socket.accept()
  push("news")

  assert.equal(received, 1)
})

test("addMessageListener() returns a function that removes the listener", (t) => {
  const { manager, push } = openManager(t)
  let received = 0
  const listen = () => received++
  manager.addMessageListener("news", () => {})
  const undo = manager.addMessageListener("news", listen)
  undo()
  push("news")
  assert.equal(received, 0)

  manager.addMessageListener("news", listen)
  undo()
  push("news")
  assert.equal(received, 1, "an old undo does not undo a later addition")
})

test("the same pair of key and handler counts once", (t) => {
  const { manager, push } = openManager(t)
  let received = 0
  const listen = () => received++
  for (const which of [0, 1]) {
    received = 0
    const undos = [manager.addMessageListener("news", listen), manager.addMessageListener("news", listen)]
    push("news")
    assert.equal(received, 1)

    undos[which]()
    push("news")
    assert.equal(received, 1, "each undo removes it")
  }
})

test("removeMessageListener() removes a pair and ignores an unknown one", (t) => {
  const { manager, push } = openManager(t)
  let received = 0
  const listen = () => received++
  manager.addMessageListener("news", listen)
  manager.removeMessageListener("other", listen)
  manager.removeMessageListener("news", () => {})
  push("news")
  manager.removeMessageListener("news", listen)
  push("news")

  assert.equal(received, 1)
})

test("{once} receives one message, even if its handler causes another", (t) => {
  const { manager, push } = openManager(t)
  let received = 0
  manager.addMessageListener(
    "news",
    () => {
      received++
      push("news")
    },
    { once: true },
  )

  push("news")
  push("news")

  assert.equal(received, 1)
})

test("{signal} removes the listener, and with an aborted signal none is added", (t) => {
  const { manager, push } = openManager(t)
  const controller = new AbortController()
  let received = 0
  manager.addMessageListener("news", () => received++, { signal: controller.signal })
  manager.addMessageListener("news", () => received++, { signal: AbortSignal.abort() })

  push("news")
  controller.abort()
  push("news")

  assert.equal(received, 1)
})

test("an error of a listener affects neither the others nor the socket", (t) => {
  const { manager, push, errors } = openManager(t)
  const cause = new Error("mine")
  let received = 0
  manager.addMessageListener("news", () => {
    throw cause
  })
  manager.addMessageListener("news", () => received++)

  push("news")

  assert.equal(received, 1)
  assert.equal(manager.state, "open")
  assert.deepEqual(errors.map((error) => [error.code, error.cause]), [["handler_failed", cause]])
})

test("errors of error and state handlers affect nothing and cause no loop", (t) => {
  const { page, manager, push } = openManager(t)
  let reported = 0
  manager.on("error", () => {
    reported++
    throw new Error("mine")
  })
  manager.on("state", () => {
    throw new Error("mine")
  })
  manager.addMessageListener("error", () => {
    throw new Error("mine")
  })

  push("error")
  page.socket.drop()

  assert.equal(reported, 2)
  assert.equal(manager.state, "waiting")
})

test("a listener removed during a dispatch is not called, an added one waits for the next message", (t) => {
  const { manager, push } = openManager(t)
  const received = []
  const removed = () => received.push("removed")
  manager.addMessageListener("news", () => {
    received.push("first")
    manager.removeMessageListener("news", removed)
    manager.addMessageListener("news", () => received.push("added"))
  })
  manager.addMessageListener("news", removed)
  manager.addMessageListener("news", () => received.push("last"))

  push("news")

  assert.deepEqual(received, ["first", "last"])
})

test("__proto__ and constructor are ordinary keys", (t) => {
  const { page, manager } = openManager(t)
  const received = []
  for (const key of ["__proto__", "constructor"]) manager.addMessageListener(key, (message) => received.push(message.key))

  page.socket.onmessage({ data: '{"key": "__proto__", "__proto__": {"polluted": true}}' })
  page.socket.onmessage({ data: '{"key": "constructor"}' })

  assert.deepEqual(received, ["__proto__", "constructor"])
  assert.equal({}.polluted, undefined)
})

test("on() returns a function that removes the handler", (t) => {
  const { page, manager } = openManager(t)
  let received = 0
  const undo = manager.on("state", () => received++)

  page.socket.drop()
  undo()
  page.tick(1700)

  assert.equal(received, 1)
})

test("a key that is no string and a handler that is no function throw a TypeError", (t) => {
  const { manager } = openManager(t)

  assert.throws(() => manager.addMessageListener(7, () => {}), { name: "TypeError", message: /key/ })
  assert.throws(() => manager.addMessageListener("news"), { name: "TypeError", message: /handler/ })
  assert.throws(() => manager.on("state", null), { name: "TypeError", message: /handler/ })
})

test("a listener can remove all listeners of its key", (t) => {
  const page = openPage(t)
  const { manager, errors } = page.connect()
  const received = []
  const undo = [
    manager.addMessageListener("news", () => undo.forEach((each) => each())),
    manager.addMessageListener("news", () => received.push("second")),
  ]
  page.socket.accept()

  page.socket.push({ key: "news" })
  page.socket.push({ key: "news" })

  assert.deepEqual(received, [])
  assert.deepEqual(errors, [])
})

test("a removed listener has no listener on its signal", (t) => {
  const { signal } = new AbortController()
  const listening = new Set()
  signal.addEventListener = (_, listener) => listening.add(listener)
  signal.removeEventListener = (_, listener) => listening.delete(listener)
  const page = openPage(t)
  const { manager } = page.connect()

  const undo = manager.addMessageListener("news", () => {}, { signal })
  assert.equal(listening.size, 1)
  undo()

  assert.equal(listening.size, 0)
})
