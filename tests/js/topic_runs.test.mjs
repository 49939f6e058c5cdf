import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"

import { openPage, script, WebSocketManager } from "./support.mjs"
import { run } from "./topic_runs.mjs"

// The full test has 10,000 runs: TOPIC_RUNS=10000.
const RUNS = Number(process.env.TOPIC_RUNS ?? 1000)

// A weakness is noticed by one of these at the latest.
const MOST_RUNS = 10_000

/** Weaknesses of a client: a text of the script, and its replacement. */
const WEAKNESSES = {
  "a message is delivered again": ["|| offset <= subscription.position?.offset) return", ") return"],
  "a position stays behind the messages": ["if (topic.position) subscription.position = {", "void {"],
  "a message goes to a subscription that has ended": ["|| subscription.state === ENDED ||", "||"],
  "a subscription that has ended begins again": ["state || subscription.state === ENDED) return", "state) return"],
  "a lost connection leaves topics live": ['suspend(manager, topic, "disconnected")', "topic"],
  "a topic stays live while the server is asked": ["      suspend(manager, topic)\n    }\n  }", "    }\n  }"],
  "a subscription that waits for its replay gets messages": ["if (subscription.state !== LIVE) continue\n", ""],
  "the server is asked for the newest position": ["if (covers(found, position))", "if (covers(position, found))"],
  "the server is asked for no position": ["since: (topic.asked = oldest(topic))", "since: void oldest(topic)"],
  "an older position joins": ["!position || covers(position, topic.position)", "true"],
  "an older position is not replayed": ["one?.offset >= other?.offset", "one?.offset > other?.offset"],
  "another epoch counts as the same": ["one?.epoch === other?.epoch && one", "one"],
  "an answer without a replay counts as one": ["if (recovered && covers", "if (covers"],
  "all positions are skipped if one is refused": ["(covers(position, asked) && covers(asked, position))", "true"],
  "a gap is not reported": ["if (_lapse) dispatch", "if (false) dispatch"],
  "a gap does not move the position": ["    subscription.position = position\n", ""],
  "a gap is reported to subscriptions that miss nothing": ["else if (!covers(subscription.position, topic.position)) skip", "else skip"],
  "a gap keeps the old epoch": ["epoch: isGap ? epoch : topic.position.epoch", "epoch: topic.position.epoch"],
  "another user has the positions of the first one": ["    forgetPositions(manager)\n", ""],
  "a refusal that passes ends the subscription": ['"unavailable", "rate_limited",', ""],
  "a topic without subscriptions is not ended on the server": ["else if (isAsked) left.push(topic)\n", ""],
}

async function weakened(text, replacement) {
  const source = await readFile(script, "utf8")
  assert.equal(source.split(text).length, 2, `${text} occurs once`)
  const module = { exports: {} }
  new Function("module", source.replace(text, replacement))(module)
  return module.exports
}

test("each handler call is once and in order, or there is one gap", async (t) => {
  const page = openPage(t)
  let calls = 0
  const turns = new Set()
  for (let seed = 1; seed <= RUNS; seed++) calls += await run(page, WebSocketManager, seed, turns)

  t.diagnostic(`${RUNS} runs, ${calls} calls of handlers`)
  assert.ok(calls > RUNS)
  // The arrows of docs/client.rst.
  const arrows = ["live -> ended", "live -> subscribing", "subscribing -> ended", "subscribing -> live"]
  assert.deepEqual([...turns].sort(), arrows)
})

for (const [name, [text, replacement]] of Object.entries(WEAKNESSES)) {
  test(`the random runs notice if ${name}`, async (t) => {
    const page = openPage(t)
    const Weak = await weakened(text, replacement)
    const runs = async () => {
      for (let seed = 1; seed <= MOST_RUNS; seed++) await run(page, Weak, seed)
    }

    await assert.rejects(runs(), (error) => {
      t.diagnostic(error.message.split("\n")[0])
      return /^Run \d+: /.test(error.message)
    })
  })
}
