"use strict"

/*
 * The board's page: one WebSocketManager, and the display of its messages.
 *
 * All text is inserted as text nodes, so the text of a note is never parsed as HTML.
 */
{
  const STILL_HERE_EVERY = 25000
  const SHOWN_NOTES = 50
  const SHOWN_ACTIVITY = 20
  const MAX_LENGTH = 500

  const byId = (id) => document.getElementById(id)
  const { username, rights } = byId("board").dataset

  // The script's tag contains the path and the URL of the token endpoint.
  const manager = new WebSocketManager()

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag)
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
    element.append(...children)
    return element
  }

  // The connection

  let countdown

  manager.on("state", ({ state, reason, delay }) => {
    clearInterval(countdown)
    byId("countdown").textContent = ""
    if (state === "connecting") showState(state, reason === "start" ? "Connecting…" : "Reconnecting…")
    if (state === "waiting") countDown(Date.now() + delay)
    if (state === "open") {
      showState(state, "Live")
      // After a reconnect the topics bring what the page has missed.
      if (!board) loadBoard()
      if (!activity) loadActivity()
    }
    if (state === "closed") {
      const texts = {
        refused: "Refused",
        token_refused: "Refused",
        signed_out: "You were signed out",
        user_changed: "Somebody else signed in",
      }
      showState(state, texts[reason] || "Disconnected")
      const ending = document.querySelector(`[data-reason="${reason}"]`)
      if (ending) leaveBoard(ending)
    }
  })

  manager.on("error", (error) => {
    if (manager.state === "open") byId("board-error").textContent = error.message
  })

  function showState(state, text) {
    byId("state").dataset.state = state
    byId("state-text").textContent = text
    byId("try-now").hidden = state !== "waiting" && state !== "closed"
  }

  /** Hide the board and show only the reason: the present user may be another one. */
  function leaveBoard(ending) {
    byId("board").hidden = byId("who").hidden = byId("try-now").hidden = true
    ending.hidden = false
    ending.focus()
  }

  function countDown(until) {
    showState("waiting", "Reconnecting")
    // A hidden page waits until it is visible.
    if (until === Infinity) return
    const show = () => {
      byId("countdown").textContent = `in ${Math.max(1, Math.ceil((until - Date.now()) / 1000))} s`
    }
    show()
    countdown = setInterval(show, 250)
  }

  byId("try-now").addEventListener("click", () => manager.reconnect())

  function stillHere() {
    if (manager.state !== "open") return
    // Ignore errors: the next call follows soon.
    manager.request({ type: "still_here" }).then(showPeople, () => {})
  }

  setInterval(stillHere, STILL_HERE_EVERY)
  document.addEventListener("visibilitychange", () => document.hidden || stillHere())

  // Messages of the server

  // The subscriptions, once their data is loaded.
  let board, activity

  /** Load all notes: at first, and after a gap in the topic. */
  async function loadBoard() {
    board?.unsubscribe()
    board = null
    try {
      const { notes, announcement, people, position } = await manager.request({ type: "board" })
      board?.unsubscribe()
      byId("notes").replaceChildren(...notes.map(noteElement))
      byId("no-notes").hidden = notes.length > 0
      if (announcement) showAnnouncement(announcement)
      showPeople({ people })
      byId("board-error").textContent = ""
      board = manager.subscribe("board", showMessage, { since: position })
      board.on("gap", loadBoard)
    } catch (error) {
      byId("board-error").textContent = explain(error)
    }
  }

  manager.addMessageListener("people", showPeople)

  function showMessage({ note, announcement }) {
    if (announcement) return showAnnouncement(announcement)
    const isNew = showNote(note)
    if (isNew && note.author.username !== username) {
      byId("announcer").textContent = `New note by ${note.author.name}: ${note.text}`
    }
  }

  /** Show what users do, if this user may see it now. */
  async function loadActivity() {
    activity?.unsubscribe()
    activity = null
    try {
      const { entries, position } = await manager.request({ type: "activity" })
      activity?.unsubscribe()
      byId("activity-list").replaceChildren()
      entries.forEach(showActivity)
      byId("activity").hidden = false
      activity = manager.subscribe("activity", showActivity, { since: position })
      activity.on("gap", loadActivity)
      activity.on("state", ({ state, reason }) => {
        if (state === "ended" && reason !== "unsubscribed") hideActivity()
      })
    } catch (error) {
      if (error.code === "permission_denied") hideActivity()
    }
  }

  function hideActivity() {
    activity = null
    byId("activity").hidden = true
    byId("activity-list").replaceChildren()
  }

  function showActivity({ name, action, text, at }) {
    const list = byId("activity-list")
    list.prepend(make("li", {}, make("strong", {}, name), ` ${action} “${text}” `, time(at)))
    if (list.children.length > SHOWN_ACTIVITY) list.lastElementChild.remove()
    byId("no-activity").hidden = true
  }

  // The server publishes each change of the user's permissions.
  manager.subscribe(rights, loadActivity).on("gap", loadActivity)

  function showPeople({ people }) {
    const rows = people.map((person) => {
      const you = person.username === username ? [make("small", {}, "you")] : []
      return make("li", { class: "person" }, avatar(person), make("span", {}, person.name), ...you)
    })
    byId("people").replaceChildren(...rows)
  }

  function showAnnouncement({ author, text, created_at }) {
    const by = make("footer", {}, `${author.name}, `, time(created_at))
    byId("announcement").replaceChildren(make("p", { class: "text" }, text), by)
    byId("announcement").hidden = false
  }

  /** Show a new or changed note; return whether it is new. */
  function showNote(note) {
    const list = byId("notes")
    const shown = list.querySelector(`[data-id="${Number(note.id)}"]`)
    const element = noteElement(note)
    if (shown) {
      const hadFocus = shown.contains(document.activeElement)
      shown.replaceWith(element)
      if (hadFocus) element.querySelector("button").focus()
      return false
    }
    // Notes of different processes may arrive in the wrong order.
    const older = [...list.children].find((item) => Number(item.dataset.id) < note.id) || null
    if (!older && list.children.length >= SHOWN_NOTES) return false
    element.classList.add("new")
    list.insertBefore(element, older)
    if (list.children.length > SHOWN_NOTES) list.lastElementChild.remove()
    byId("no-notes").hidden = true
    return true
  }

  function noteElement({ id, author, text, created_at, is_done }) {
    const button = make("button", { class: "quiet" }, is_done ? "Reopen" : "Done")
    button.setAttribute("aria-label", `${button.textContent}: ${text.slice(0, 60)}`)
    button.addEventListener("click", async () => {
      if (isBusy(button)) return
      byId("board-error").textContent = ""
      setBusy(button, true)
      try {
        showNote(await manager.request({ type: "mark_done", id, is_done: !is_done }))
      } catch (error) {
        byId("board-error").textContent = explain(error)
      }
      setBusy(button, false)
    })
    const head = make("header", {}, make("strong", {}, author.name), time(created_at), button)
    const body = make("div", {}, head, make("p", { class: "text" }, text))
    return make("li", { class: is_done ? "note done" : "note", "data-id": id }, avatar(author), body)
  }

  // Actions of the user

  function onSubmit(name, ask) {
    const form = byId(`${name}-form`)
    const button = form.querySelector("button")
    const box = form.querySelector("textarea")
    form.addEventListener("submit", async (event) => {
      event.preventDefault()
      if (isBusy(button)) return
      setBusy(button, true)
      byId(`${name}-error`).textContent = ""
      box?.removeAttribute("aria-invalid")
      try {
        await ask(box)
      } catch (error) {
        byId(`${name}-error`).textContent = explain(error)
        box?.setAttribute("aria-invalid", "true")
      }
      setBusy(button, false)
    })
    box?.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit()
    })
  }

  function explain(error) {
    const texts = {
      permission_denied: "You are not allowed to publish announcements.",
      disconnected: "The connection was lost on the way. Look at the board before you try again.",
      timeout: "There was no answer. Look at the board before you try again.",
      closed: "There is no connection to the board.",
    }
    return texts[error.code] || error.message
  }

  function count() {
    // Count characters, as the server does, and not UTF-16 units.
    const length = [...byId("note-text").value.trim()].length
    byId("note-count").textContent = `${length} / ${MAX_LENGTH}`
    byId("note-count").classList.toggle("over", length > MAX_LENGTH)
  }

  async function send(type, box, show) {
    const sent = box.value
    show(await manager.request({ type, text: sent }))
    // Keep a text that was typed meanwhile.
    if (box.value === sent) box.value = ""
    count()
  }

  byId("note-text").addEventListener("input", count)
  count()
  onSubmit("note", (box) => send("post_note", box, showNote))
  onSubmit("announcement", (box) => send("publish_announcement", box, showAnnouncement))
  let cancelReport

  onSubmit("report", async () => {
    const cancel = new AbortController()
    cancelReport = () => cancel.abort()
    showProgress({ hours: 0, count: 0 })
    byId("report").replaceChildren()
    byId("report-progress").hidden = false
    try {
      for await (const part of manager.stream({ type: "handover_report" }, { signal: cancel.signal })) {
        if (part.report) byId("report").replaceChildren(...reportElements(part.report))
        else showProgress(part)
      }
    } catch (error) {
      // The user has cancelled: show no error.
      if (error.code !== "aborted") throw error
    } finally {
      // The cancel button is hidden next: move its focus to the form.
      if (byId("report-progress").contains(document.activeElement)) byId("report-form").querySelector("button").focus()
      byId("report-progress").hidden = true
    }
  })

  byId("report-cancel").addEventListener("click", () => cancelReport())

  function showProgress({ hours, of = 24, count }) {
    byId("report-bar").max = of
    byId("report-bar").value = hours
    byId("report-hours").textContent = `${hours} of ${of} hours, ${count === 1 ? "1 note" : `${count} notes`}`
  }

  function reportElements(report) {
    const rows = []
    const row = (name, ...value) => rows.push(make("div", {}, make("dt", {}, name), make("dd", {}, ...value)))
    row(`Notes in ${report.hours} hours`, `${report.count}, ${report.open} of them open`)
    if (report.busiest_hour) {
      const { hour, count } = report.busiest_hour
      row("Busiest hour", "from ", time(hour), `: ${count === 1 ? "1 note" : `${count} notes`}`)
    }
    if (report.oldest_open) row("Open the longest", `${report.oldest_open.text.slice(0, 80)} (`, time(report.oldest_open.created_at), ")")
    if (report.newest) row("Newest", `${report.newest.text.slice(0, 80)} (${report.newest.author.name})`)
    const bars = report.authors.map(({ name, count }) => {
      const bar = make("span", { class: "bar" })
      bar.style.setProperty("--part", count / report.count)
      return make("li", {}, make("span", {}, name), bar, make("span", {}, String(count)))
    })
    return [make("dl", {}, ...rows), make("ul", { class: "list bars", "aria-label": "Notes by author" }, ...bars)]
  }

  // Helpers

  const isBusy = (button) => button.getAttribute("aria-disabled") === "true"

  /** Use aria-disabled, because a disabled button would lose the keyboard focus. */
  function setBusy(button, busy) {
    button.setAttribute("aria-disabled", busy)
  }

  function avatar({ username, name }) {
    const element = make("span", { class: "avatar", "aria-hidden": "true" }, [...name][0].toUpperCase())
    const hue = [...username].reduce((sum, letter) => sum * 31 + letter.codePointAt(0), 7) % 360
    element.style.setProperty("--hue", hue)
    return element
  }

  function time(iso) {
    const date = new Date(iso)
    const isToday = date.toDateString() === new Date().toDateString()
    const day = isToday ? {} : { day: "numeric", month: "short" }
    const text = date.toLocaleString([], { hour: "2-digit", minute: "2-digit", ...day })
    return make("time", { datetime: iso, title: date.toLocaleString() }, text)
  }
}
