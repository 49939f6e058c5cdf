import { Page, random } from "./page.mjs"

const SECOND = 1000
const MINUTE = 60 * SECOND

/** The number of pages for each case. The figures are those of all pages together. */
export const RESUME_PAGES = { count: 20 }

/** One page that follows a stream of numbers, its server, and what the page has received. */
class Run {
  /** The numbers that the page has handled, and "gap" where the client reported one. */
  events = []
  published = 0
  /** Called with each number, in the handler of the page. */
  received = () => {}

  constructor(client, seed) {
    const log = {
      receive: (number) => {
        this.events.push(number)
        this.received(number)
      },
      gap: () => this.events.push("gap"),
    }
    const open = (exports, page) => {
      this.server = client.start(page.clock)
      client.open(exports, page, log)
    }
    this.page = new Page({ ...client, open, serve: (connection) => this.server.serve(connection) }, { seed })
    this.clock = this.page.clock
    this.network = this.page.network
    this.seed = seed
  }

  publish() {
    this.server.publish(++this.published)
  }

  /** Publish `count` numbers, one every `ms`. */
  async flow(count, ms) {
    for (let done = 0; done < count; done++) {
      this.publish()
      await this.clock.pass(ms)
    }
  }

  /** Wait until the page receives what is published. */
  async begin() {
    await this.clock.pass(MINUTE)
    await this.flow(5, SECOND)
    if (!this.events.length) throw new Error("The page receives nothing")
  }

  /** Wait until the page has reconnected, and publish the last numbers. */
  async end() {
    await this.clock.pass(5 * MINUTE)
    await this.flow(5, SECOND)
    return count(this.events, this.published)
  }
}

/**
 * Count what is wrong with `events`: numbers and "gap". The server has published the numbers up to `last`.
 *
 * A number is lost if it is larger than the first one and the page has not handled it. It is unreported if no gap
 * lies between the numbers around it. A gap is needless if no number is lost there.
 */
export function count(events, last) {
  const found = { lost: 0, unreported: 0, twice: 0, disordered: 0, needless: 0 }
  const received = new Set(events)
  const handled = new Set()
  let top = null
  let gaps = 0
  const advance = (number) => {
    let lost = 0
    for (let each = top + 1; top !== null && each < number; each++) lost += !received.has(each)
    found.lost += lost
    if (!gaps) found.unreported += lost
    if (!lost) found.needless += gaps
    gaps = 0
    top = number
  }
  for (const event of events) {
    if (event === "gap") gaps++
    else if (handled.has(event)) found.twice++
    else if (event < top) found.disordered++
    else advance(event)
    handled.add(event)
  }
  advance(last + 1)
  return found
}

// The cases

/** After each number, also in a replay, the network fails with a chance of 1 in 25, for up to 3 s. */
async function cuts(run) {
  const chance = random(run.seed)
  run.received = () => {
    if (chance() > 1 / 25) return
    run.network.drop()
    run.clock.after(chance() * 3 * SECOND, () => (run.network.mode = "up"))
  }
  await run.flow(600, SECOND / 2)
  run.received = () => {}
}

/** The network loses everything without an error, as when a phone changes networks. */
async function halfOpen(run) {
  await run.clock.pass(run.seed * 600)
  run.network.cut()
  await run.flow(90, SECOND)
}

const sleep = (minutes, apart) => async (run) => {
  run.page.hide({ frozen: true })
  await run.clock.pass(SECOND)
  run.network.cut()
  const timer = run.clock.after(apart, () => run.publish(), { every: apart })
  await run.clock.sleepBeside(minutes * MINUTE)
  run.clock.cancel(timer)
  run.page.wake({ frozen: true })
  await run.flow(20, SECOND)
}

const restart = (keeps) => async (run) => {
  await run.flow(20, SECOND / 5)
  run.network.drop()
  if (!run.server.restart(keeps)) return false
  await run.clock.pass(2 * SECOND)
  run.network.mode = "up"
  await run.flow(100, SECOND / 5)
}

const CASES = {
  cuts,
  halfOpen,
  nap: sleep(1, 2 * SECOND),
  sleep: sleep(60, 10 * SECOND),
  kept: restart(true),
  forgotten: restart(false),
}

/** Return what `client` loses, repeats and reports, by case: null if it cannot be simulated. */
export async function measureResume(client) {
  const figures = { bytes: client.bytes }
  for (const [name, act] of Object.entries(CASES)) {
    const found = []
    for (let seed = 1; seed <= RESUME_PAGES.count; seed++) {
      const run = new Run(client, seed)
      await run.begin()
      if ((await act(run)) !== false) found.push(await run.end())
    }
    const sum = (key) => found.reduce((total, each) => total + each[key], 0)
    const keys = ["lost", "unreported", "twice", "disordered", "needless"]
    figures[name] = found.length ? Object.fromEntries(keys.map((key) => [key, sum(key)])) : null
  }
  return figures
}

// The table

const whole = (number) => number.toLocaleString("en-US")
const total = (figures, key) => Object.values(figures).reduce((sum, each) => sum + (each?.[key] ?? 0), 0)

const lost = (key, name, isPromised = true) => ({
  name,
  bar: isPromised ? "0" : undefined,
  show: ({ [key]: figure }) => (figure ? whole(figure.lost) : "\\-"),
  holds: isPromised && (({ [key]: figure }) => figure.lost === 0),
})

const none = (key, name) => ({
  name,
  bar: "0",
  show: (figures) => whole(total(figures, key)),
  holds: (figures) => total(figures, key) === 0,
})

/** The rows, as those of figures.mjs. */
export const RESUME_ROWS = [
  { name: "Gzip bytes of the bundle", show: ({ bytes }) => whole(bytes) },
  lost("cuts", "Cuts while messages flow: lost"),
  lost("halfOpen", "Half-open link: lost"),
  lost("nap", "Sleep of a minute: lost"),
  lost("sleep", "Sleep of an hour, more than is kept: lost", false),
  lost("kept", "Restart that keeps the history: lost"),
  lost("forgotten", "Restart that loses the history: lost", false),
  none("unreported", "Of all these, lost without a report"),
  none("needless", "Reports where nothing is lost"),
  none("twice", "Handled twice"),
  none("disordered", "Handled out of order"),
]
