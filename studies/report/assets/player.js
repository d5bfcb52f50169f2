"use strict";
// The replay's controls: which episode is shown, at which turn, and whether it plays.
(function () {
  var draw = window.emojimazeBoard, numbers = window.emojimazeCommon;
  var player = document.querySelector('[data-part="player"]');
  if (!player) return;

  function part(name, root) { return (root || player).querySelector('[data-part="' + name + '"]'); }
  function choice(name) { return player.querySelector('[data-choice="' + name + '"]'); }
  function button(name) { return player.querySelector('[data-action="' + name + '"]'); }

  var PLAY = "M5 2.5 13 8l-8 5.5z", PAUSE = "M4 3h3v10H4zM9 3h3v10H9z", TURN = 900;
  var panels = Array.prototype.slice.call(player.querySelectorAll('[data-part="side"]'));
  var line = part("turn"), recording = null, sides = [], cells = [], turn = 0, turns = 0, timer = null;
  // Which of the recording's sides the panels show: the first, and one that is chosen along training.
  var shown = [0, 1];
  // What was asked for last; a script that arrives late must not replace a newer choice.
  var wanted = "";

  function load() {
    var select = choice("arm"), option = select.options[select.selectedIndex], key = select.value;
    pause();
    wanted = key;
    if (window.emojimazeReplays && window.emojimazeReplays[key]) return open(key);
    line.textContent = "Loading the episodes …";
    var script = document.createElement("script");
    script.src = option.getAttribute("data-script");
    script.onload = function () { if (wanted === key) open(key); };
    script.onerror = function () { if (wanted === key) line.textContent = "The episodes cannot be loaded: " + script.src; };
    document.head.appendChild(script);
  }

  function fill(select, labels, index) {
    select.replaceChildren.apply(select, labels.map(function (label, value) {
      var option = document.createElement("option");
      option.value = value;
      option.textContent = label;
      return option;
    }));
    select.value = String(index);
    select.disabled = false;
  }

  function open(key) {
    var before = recording, member = choice("member").value, episode = choice("episode").value;
    recording = window.emojimazeReplays[key];
    // The same member and maze as in the arm before, where there are as many.
    var same = before && before.members.length === recording.members.length;
    fill(choice("member"), recording.members.map(function (each, index) {
      return index + " · " + each.label;
    }), same ? member : recording.typical);
    fill(choice("episode"), recording.members[0].episodes.map(function (each, index) {
      return index + 1;
    }), same && episode < recording.members[0].episodes.length ? episode : 0);
    choice("arm").disabled = false;
    player.querySelectorAll("button").forEach(function (each) { each.disabled = false; });
    choice("turn").disabled = false;
    var last = recording.sides.length - 1, along = choice("along");
    part("along").hidden = last < 2;
    along.max = Math.max(last, 1);
    along.value = along.max;
    start();
  }

  function start() {
    var member = recording.members[choice("member").value], episode = member.episodes[choice("episode").value];
    pause();
    shown = recording.sides.length > 1 ? [0, Number(choice("along").value)] : [0];
    sides = shown.map(function (index) { return new draw.Side(episode, episode.sides[index]); });
    turns = Math.max.apply(null, sides.map(function (side) { return side.turns; }));
    turn = 0;
    choice("turn").max = turns;
    panels.forEach(function (panel, index) {
      panel.hidden = index >= sides.length;
      if (panel.hidden) return;
      part("name", panel).textContent = called(index);
      part("mean", panel).textContent = means(member, shown[index]);
      cells[index] = draw.build(part("board", panel), sides[index]);
    });
    draw.legend(part("legend"), sides);
    var last = shown.length - 1, known = part("mean", panels[last]).textContent;
    choice("along").setAttribute("aria-valuetext", called(last) + ", " + known);
    show();
  }

  // What the panel's side is called.
  function called(index) { return capital(recording.sides[shown[index]]); }

  // What is known of a member at a side, over more mazes than one.
  function means(member, side) {
    var words = [], earned = member.returns[side], nats = member.nats[side];
    if (nats !== null) {
      var digits = nats < 5e-4 ? 0 : numbers.digits(nats, 2);
      words.push("KL from the base " + numbers.fixed(nats, digits) + " nats per episode");
    }
    if (earned !== null) {
      words.push("mean return over all evaluation mazes " + numbers.signed(earned, Math.abs(earned) < 10 ? 2 : 1));
    }
    return words.join(", ");
  }

  function capital(text) { return text.charAt(0).toUpperCase() + text.slice(1); }

  function range(list) {
    var all = [].concat.apply([], list);
    return [Math.min.apply(null, all), Math.max.apply(null, all)];
  }

  function show() {
    var returns = range(sides.map(function (side) { return side.returns; }));
    var valued = sides.some(function (side) { return side.side.values; });
    sides.forEach(function (side, index) {
      var panel = panels[index], board = part("board", panel), charts = part("charts", panel);
      draw.board(board.parentNode, board, cells[index], side, turn);
      draw.reads(part("reads", panel), side, turn);
      draw.chances(part("chances", panel), side, turn);
      draw.personas(part("personas", panel), side, turn, recording.personas);
      draw.fortune(part("fortune", panel), side, turn, valued);
      charts.replaceChildren(draw.chart("Return so far", side.returns, returns, turns, turn));
    });
    choice("turn").value = turn;
    choice("turn").setAttribute("aria-valuetext", when());
    line.textContent = when() + ". " + sides.map(function (side, index) {
      return called(index) + ": " + side.story(turn) + ".";
    }).join(" ");
  }

  function when() { return turn < turns ? "Turn " + (turn + 1) + " of " + turns : "The end, after " + turns + " turns"; }

  function go(to) {
    turn = Math.max(0, Math.min(turns, to));
    show();
  }

  function pause() {
    if (timer) window.clearInterval(timer);
    timer = null;
    name("Play", PLAY);
    line.setAttribute("aria-live", "polite");
  }

  function play() {
    if (turn >= turns) turn = 0;
    // A voice that reads every turn would never catch up; it reads where the play has stopped.
    line.setAttribute("aria-live", "off");
    name("Pause", PAUSE);
    timer = window.setInterval(function () {
      if (turn + 1 >= turns) pause();
      go(turn + 1);
    }, TURN / Number(choice("speed").value));
    show();
  }

  function name(label, path) {
    var control = button("play");
    control.setAttribute("aria-label", label);
    control.title = label;
    control.querySelector("path").setAttribute("d", path);
  }

  function act(action) {
    if (!recording) return;
    if (action === "play") return timer ? pause() : play();
    pause();
    go({ first: 0, back: turn - 1, step: turn + 1, last: turns }[action]);
  }

  player.addEventListener("click", function (event) {
    var control = event.target.closest("[data-action]");
    if (control) act(control.getAttribute("data-action"));
  });

  player.addEventListener("keydown", function (event) {
    var on = event.target.tagName, keys = {
      ArrowLeft: "back", ArrowRight: "step", Home: "first", End: "last", " ": "play"
    };
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || !keys[event.key]) return;
    // Fields keep their own keys, and a button its own space.
    if (on === "SELECT" || on === "INPUT" || (on === "BUTTON" && event.key === " ")) return;
    event.preventDefault();
    act(keys[event.key]);
  });

  choice("arm").addEventListener("change", load);
  choice("member").addEventListener("change", start);
  choice("episode").addEventListener("change", start);
  // The maze stays where it is, so that one turn can be compared along training.
  choice("along").addEventListener("input", function () {
    var at = turn;
    start();
    go(at);
  });
  choice("turn").addEventListener("input", function () {
    pause();
    go(Number(choice("turn").value));
  });
  choice("speed").addEventListener("change", function () {
    if (!timer) return;
    pause();
    play();
  });

  // After the first paint, and only when the replay comes near.
  function begin() {
    if (!("IntersectionObserver" in window)) return load();
    var watch = new IntersectionObserver(function (entries) {
      if (!entries.some(function (entry) { return entry.isIntersecting; })) return;
      watch.disconnect();
      load();
    }, { rootMargin: "600px" });
    watch.observe(player);
  }
  window.requestAnimationFrame(function () { window.setTimeout(begin, 0); });
})();
