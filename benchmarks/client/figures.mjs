import { Page } from "./page.mjs"

const SECOND = 1000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const STEP = 10 // ms: dials that are no further apart are one dial to a server
const MANY = 100_000

/** The number of pages for each figure. The figure is that of the worst page. */
export const PAGES = { few: 20, outage: 100, crowd: 1000 }

const worst = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity)

async function ofEach(count, measure) {
  const results = []
  for (let seed = 1; seed <= count; seed++) results.push(await measure(seed))
  return results
}

async function connected(client, seed) {
  const page = new Page(client, { seed })
  await page.clock.pass(MINUTE)
  return page
}

/** Return the time until `done()`, in ms, or Infinity after the limit. */
async function until(clock, done, limit) {
  const from = clock.now
  return (await clock.pass(limit, done)) ? clock.now - from : Infinity
}

// The server is unavailable

async function outage(client) {
  const pages = await ofEach(PAGES.outage, async (seed) => {
    const { clock, network } = await connected(client, seed)
    const before = network.sockets.length
    network.drop()
    await clock.pass(10 * MINUTE)
    const ended = network.sockets.slice(before - 1).map(({ endedAt }) => endedAt)
    const dials = network.dials.slice(before)
    // The outage ends at different times, so that the result does not depend on one moment.
    await clock.pass(seed * 100)
    network.mode = "up"
    const back = await until(clock, () => network.isUp, 10 * MINUTE)
    return { dials, back, wait: worst(dials.map((at, index) => at - ended[index])) }
  })
  return {
    outageDials: worst(pages.map(({ dials }) => dials.length)),
    longestWait: worst(pages.map(({ wait }) => wait)),
    inStep: inStep(pages.map(({ dials }) => dials)),
    back: worst(pages.map(({ back }) => back)),
  }
}

/** The largest number of clients that connect at the same time three times in a row; 1 is none. */
function inStep(clients) {
  const triples = clients.flatMap((dials, client) =>
    dials.slice(2).map((_, index) => ({ client, dials: dials.slice(index, index + 3) })),
  )
  triples.sort((one, other) => one.dials[0] - other.dials[0])
  const together = (one, other) => one.dials.every((at, index) => Math.abs(at - other.dials[index]) <= STEP)
  return worst(
    triples.map((one, index) => {
      const group = new Set()
      for (let next = index; next < triples.length && triples[next].dials[0] - one.dials[0] <= STEP; next++) {
        if (together(one, triples[next])) group.add(triples[next].client)
      }
      return group.size
    }),
  )
}

async function crowd(client) {
  const pages = await ofEach(PAGES.crowd, async (seed) => {
    const { clock, network } = await connected(client, seed)
    const from = clock.now
    const before = network.sockets.length
    network.drop()
    await clock.pass(MINUTE)
    network.mode = "up"
    await until(clock, () => network.isUp, 10 * MINUTE)
    return { dials: network.dials.slice(before).map((at) => at - from), again: replays(network) }
  })
  const dials = pages.flatMap((page) => page.dials).sort((one, other) => one - other)
  let first = 0
  const inWindow = dials.map((at, index) => {
    while (at - dials[first] > 100) first++
    return index - first + 1
  })
  return { crowdPeak: worst(inWindow) / PAGES.crowd, crowdReplays: worst(pages.map(({ again }) => again)) }
}

/** The number of tokens that the server received on more than one connection. */
function replays({ sockets }) {
  const given = sockets.flatMap(({ tokens }) => [...tokens])
  return given.length - new Set(given).size
}

// The server is available, but fails

async function refusing(client, mode) {
  const dials = await ofEach(PAGES.few, async (seed) => {
    const { clock, network } = new Page(client, { seed, mode })
    await clock.pass(MINUTE)
    return network.sockets.length
  })
  return worst(dials)
}

async function hanging(client) {
  const gaps = await ofEach(PAGES.few, async (seed) => {
    const { clock, network } = new Page(client, { seed, mode: "hanging" })
    await clock.pass(10 * MINUTE)
    const { dials } = network
    return dials.length > 1 ? worst(dials.slice(1).map((at, index) => at - dials[index])) : Infinity
  })
  return worst(gaps)
}

// The network drops everything without an error

async function noticed(client, { moments, apart, befall }) {
  const times = await ofEach(moments, async (moment) => {
    const page = await connected(client, moment)
    await page.clock.pass(moment * apart)
    const from = await befall(page)
    const { clock, network } = page
    await clock.pass(10 * MINUTE, () => network.noticedAt !== null)
    return (network.noticedAt ?? Infinity) - from
  })
  return worst(times)
}

// Each returns the time from which the client could notice it.

async function halfOpen({ clock, network }) {
  network.cut()
  return clock.now
}

const sleep = ({ frozen, overdue }) => async (page) => {
  page.hide({ frozen })
  await page.clock.pass(SECOND)
  page.network.cut()
  page.clock.sleep(HOUR, { overdue })
  page.wake({ frozen })
  return page.clock.now
}

const SLEEPS = [true, false].flatMap((frozen) => [true, false].map((overdue) => sleep({ frozen, overdue })))

async function offline(page) {
  const from = page.clock.now
  page.network.cut()
  page.goOffline()
  await page.clock.pass(SECOND)
  page.goOnline()
  return from
}

/** The time until the client notices that its link is dead. */
export async function liveness(client) {
  const often = { moments: 30, apart: 2 * SECOND }
  const sleeps = SLEEPS.map((befall) => noticed(client, { ...often, befall }))
  return {
    halfOpen: await noticed(client, { moments: 120, apart: SECOND / 2, befall: halfOpen }),
    wake: worst(await Promise.all(sleeps)),
    offline: await noticed(client, { ...often, befall: offline }),
  }
}

// Calls of the page's own code

async function sending(client) {
  const { clock, network, user } = await connected(client)
  let refused = 0
  network.drop()
  await clock.pass(SECOND)
  for (let count = 0; count < MANY; count++) user.send(() => refused++)
  await clock.pass(SECOND)
  network.mode = "up"
  await clock.pass(7 * SECOND, () => network.isUp)
  await clock.pass(SECOND)
  return { kept: network.arrived, unreported: Math.max(0, MANY - network.arrived - refused) }
}

/** The states in which close() is called, each reached from an open connection. */
const STATES = {
  async open() {},
  async cut({ network }) {
    network.cut()
  },
  async frozen(page) {
    page.hide({ frozen: true })
    await page.clock.pass(MINUTE)
  },
  async paused(page) {
    page.hide()
    page.network.drop()
    await page.clock.pass(MINUTE)
  },
  async waiting({ clock, network }) {
    network.drop()
    await clock.pass(20 * SECOND)
  },
  async hanging({ clock, network }) {
    network.drop()
    network.mode = "hanging"
    await until(clock, () => network.held.length, MINUTE)
  },
  async dialling({ clock, network }) {
    network.drop()
    network.mode = "up"
    await until(clock, () => network.held.length, MINUTE)
  },
  async asking(page) {
    page.tokens = "hanging"
    page.network.drop()
    page.network.mode = "up"
    const asked = page.tokensAsked
    await until(page.clock, () => page.tokensAsked > asked, MINUTE)
  },
}

async function closing(client) {
  const left = []
  for (const reach of Object.values(STATES)) {
    const page = await connected(client)
    const { clock, network, user } = page
    await reach(page)
    const before = network.sockets.length
    user.close()
    network.mode = "up"
    await clock.pass(5 * SECOND)
    page.wakeInEveryWay()
    await clock.pass(25 * SECOND)
    left.push([network.sockets.length - before, network.held.length, clock.pending, page.listening])
  }
  const [dials, sockets, timers, listeners] = left[0].map((_, index) => worst(left.map((row) => row[index])))
  return { closeDials: dials, closeLeft: [sockets, timers, listeners] }
}

async function tokens(client) {
  const pages = await ofEach(PAGES.few, async (seed) => {
    const page = await connected(client, seed)
    const { clock, network } = page
    for (let outage = 0; outage < 3; outage++) {
      network.drop()
      await clock.pass(20 * SECOND)
      network.mode = "up"
      page.wakeInEveryWay()
      await clock.pass(MINUTE)
    }
    const opened = network.sockets.filter(({ openedAt }) => openedAt).length
    return { asked: page.tokensAsked, dials: network.sockets.length, opened, again: replays(network) }
  })
  const sum = (name) => pages.reduce((total, page) => total + page[name], 0)
  return {
    asksADial: sum("asked") / sum("dials"),
    asksAnOpen: sum("asked") / sum("opened"),
    asksTooMany: pages.some(({ asked, dials }) => asked > dials),
    replays: worst(pages.map(({ again }) => again)),
  }
}

/** The time to reconnect if one request of a token fails. */
async function withoutToken(client) {
  const page = await connected(client)
  const { clock, network } = page
  page.tokens = "failing"
  network.drop()
  network.mode = "up"
  const asked = page.tokensAsked
  await until(clock, () => page.tokensAsked > asked, MINUTE)
  page.tokens = "given"
  return until(clock, () => network.isUp, 10 * MINUTE)
}

/** Return all figures of `client`, as numbers. */
export async function measure(client) {
  return {
    bytes: client.bytes,
    ...(await outage(client)),
    ...(await crowd(client)),
    dropped: await refusing(client, "dropping"),
    greeted: await refusing(client, "greeting"),
    ...(await liveness(client)),
    hanging: await hanging(client),
    ...(await sending(client)),
    ...(await closing(client)),
    ...(await tokens(client)),
    tokenFailed: await withoutToken(client),
  }
}

// The table

const whole = (number) => number.toLocaleString("en-US")
export const seconds = (ms) => (ms === Infinity ? "never" : whole(Number((ms / SECOND).toFixed(1))))

function asks({ asksADial, asksAnOpen }) {
  if (asksADial === 1) return "a dial"
  return asksAnOpen === 1 ? "an open" : asksADial.toFixed(2)
}

/** The rows: the name, the promise, the shown figure, and whether the promise is kept. */
export const ROWS = [
  {
    name: "Gzip bytes of the bundle",
    show: ({ bytes }) => whole(bytes),
  },
  {
    name: "10 minutes down: dials",
    bar: "100",
    show: ({ outageDials }) => whole(outageDials),
    holds: ({ outageDials }) => outageDials <= 100,
  },
  {
    name: "10 minutes down: longest wait, s",
    bar: "15.2",
    show: ({ longestWait }) => seconds(longestWait),
    holds: ({ longestWait }) => longestWait <= 15_200,
  },
  {
    name: "10 minutes down: clients of 100 in step",
    bar: "none",
    show: ({ inStep }) => (inStep > 1 ? whole(inStep) : "none"),
    holds: ({ inStep }) => inStep === 1,
  },
  {
    name: "10 minutes down: connected again after, s",
    show: ({ back }) => seconds(back),
  },
  {
    name: "1,000 clients, 60 s down: peak in 100 ms",
    bar: "10 %",
    show: ({ crowdPeak }) => `${(crowdPeak * 100).toFixed(1)} %`,
    holds: ({ crowdPeak }) => crowdPeak <= 0.1,
  },
  {
    name: "Accepted, then dropped, for 60 s: dials",
    bar: "20",
    show: ({ dropped }) => whole(dropped),
    holds: ({ dropped }) => dropped <= 20,
  },
  {
    name: "Greeted, then dropped, for 60 s: dials",
    bar: "20",
    show: ({ greeted }) => whole(greeted),
    holds: ({ greeted }) => greeted <= 20,
  },
  {
    name: "Half-open link noticed after, s",
    bar: "35",
    show: ({ halfOpen }) => seconds(halfOpen),
    holds: ({ halfOpen }) => halfOpen <= 35_000,
  },
  {
    name: "The same after a wake, s",
    bar: "3",
    show: ({ wake }) => seconds(wake),
    holds: ({ wake }) => wake <= 3000,
  },
  {
    name: "The same after ``offline`` and ``online``, s",
    show: ({ offline }) => seconds(offline),
  },
  {
    name: "Dial that hangs: next dial after, s",
    bar: "26",
    show: ({ hanging }) => seconds(hanging),
    holds: ({ hanging }) => hanging <= 26_000,
  },
  {
    name: "100,000 sends while offline: kept",
    bar: "100",
    show: ({ kept }) => whole(kept),
    holds: ({ kept }) => kept <= 100,
  },
  {
    name: "... neither kept nor reported as lost",
    bar: "0",
    show: ({ unreported }) => whole(unreported),
    holds: ({ unreported }) => unreported === 0,
  },
  {
    name: "``close()`` in any state: dials after it",
    bar: "0",
    show: ({ closeDials }) => whole(closeDials),
    holds: ({ closeDials }) => closeDials === 0,
  },
  {
    name: "... sockets, timers, page listeners after 30 s",
    bar: "0, 0, 0",
    show: ({ closeLeft }) => closeLeft.map(whole).join(", "),
    holds: ({ closeLeft }) => closeLeft.every((count) => count === 0),
  },
  {
    name: "Tokens: one call for",
    bar: "a dial",
    show: asks,
    holds: ({ asksTooMany }) => !asksTooMany,
  },
  {
    name: "Tokens used for two dials",
    bar: "0",
    show: (figures) => whole(Math.max(figures.replays, figures.crowdReplays)),
    holds: (figures) => figures.replays + figures.crowdReplays === 0,
  },
  {
    name: "One call for a token fails: back after, s",
    show: ({ tokenFailed }) => seconds(tokenFailed),
  },
]
