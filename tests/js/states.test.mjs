import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage, tokens, TRANSITIONS, watchStates } from "./support.mjs"

const STATES = ["connecting.token", "connecting.socket", "connecting.proof", "open", "waiting", "closed"]

test("the documentation has all states", () => {
  const documented = new Set(TRANSITIONS.flatMap((pair) => pair.split(" -> ")))

  assert.deepEqual([...documented].sort(), STATES.toSorted())
})

test("every documented transition happens", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", tokens())
  const made = watchStates(manager)
  const socket = async () => {
    manager.reconnect()
    await page.pass(0)
  }
  const proof = async () => {
    await socket()
    manager.sendJSON({ type: "queued" })
    page.socket.accept()
  }
  const open = async () => {
    await socket()
    page.socket.accept()
  }
  const waiting = async () => {
    await open()
    page.socket.drop()
  }
  const leaves = [() => manager.reconnect(), () => page.window.dispatch("pagehide"), () => manager.close()]

  for (const leave of leaves) {
    manager.reconnect()
    leave()
    for (const reach of [socket, open, waiting, proof]) {
      await reach()
      leave()
    }
  }
  await proof()
  page.tick(100)
  const { manager: other } = page.connect("/ws/", "wst_a")
  other.close()
  const later = watchStates(other)
  other.reconnect()

  assert.deepEqual([...new Set([...made, ...later])].sort(), TRANSITIONS.toSorted())
})

test("a transition that is not documented fails its test", (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", "wst_a")
  manager._manager.state = "waiting"

  assert.throws(() => page.socket.accept(), /waiting -> connecting\.proof/)
  assert.equal(manager.state, "waiting")
})
