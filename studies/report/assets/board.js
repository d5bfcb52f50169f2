"use strict";
// Draws one side of a replay: board, what the policy reads, its probabilities, how it has fared, charts.
(function () {
  var words = window.emojimazeVocabulary, common = window.emojimazeCommon;
  var make = common.make, draw = common.draw, signed = common.signed;
  var MET = { gold: "took Gold", mold: "met Mold", goal: "reached the Goal" };
  var STEPS = [[-1, 0], [0, 1], [1, 0], [0, -1]];

  function place(element, token) {
    var column = token % words.columns, row = Math.floor(token / words.columns);
    element.style.backgroundSize = 100 * words.columns + "% " + 100 * words.rows + "%";
    element.style.backgroundPosition =
      100 * column / (words.columns - 1) + "% " + 100 * row / (words.rows - 1) + "%";
    return element;
  }

  function sprite(token, name) {
    var element = place(make("span", "sprite"), token);
    if (name) {
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", name);
      element.title = name;
    } else {
      element.setAttribute("aria-hidden", "true");
    }
    return element;
  }

  // One side of an episode with everything that does not change while it plays worked out.
  function Side(episode, side) {
    this.episode = episode;
    this.side = side;
    this.turns = side.actions.length;
    this.boards = [side.board.split("").map(Number)];
    this.returns = [0];
    // On a map, token and name of the tiles that have them.
    this.labels = {};
    this.names = {};
    (episode.places || []).forEach(function (place) {
      this.labels[place[0]] = place[1];
      this.names[place[0]] = place[2];
    }, this);
    for (var turn = 0; turn < this.turns; turn++) {
      var next = this.boards[turn].slice(), changes = side.changes[turn];
      for (var i = 0; i < changes.length; i += 2) next[changes[i]] = changes[i + 1];
      this.boards.push(next);
      this.returns.push(this.returns[turn] + side.rewards[turn]);
    }
  }

  Side.prototype.position = function (turn) { return this.side.positions.slice(2 * turn, 2 * turn + 2); };
  Side.prototype.midpoint = function (turn) { return this.side.midpoints.slice(2 * turn, 2 * turn + 2); };

  Side.prototype.cell = function (turn) {
    var here = this.position(turn);
    return here[0] * this.episode.width + here[1];
  };

  Side.prototype.advised = function (turn) { return this.side.advised ? this.side.advised[turn] : -1; };

  Side.prototype.tileName = function (index, turn) {
    var role = this.boards[turn][index];
    if (!this.episode.places) return words.roles[role] + " (" + words.names[this.episode.tileMap[role]] + ")";
    if (!this.names[index]) return words.roles[role];
    return this.names[index] + (role ? ", " + words.roles[role] : "") + (index === this.cell(0) ? ", the start" : "") +
      (this.side.thought.indexOf(index) < 0 ? "" : ", in the thought") +
      (index === this.advised(turn) ? ", which the thought names now" : "");
  };

  // What a turn met on its way, in words: in the cell ahead, where the move ended, and where the wind left it.
  Side.prototype.met = function (turn) {
    var from = this.position(turn), step = STEPS[+this.side.actions[turn]], width = this.episode.width, passed = [];
    var stops = [[from[0] + step[0], from[1] + step[1]], this.midpoint(turn), this.position(turn + 1)];
    var cells = stops.map(function (stop) { return stop[0] * width + stop[1]; });
    cells.forEach(function (cell, leg) {
      var inside = stops[leg][0] >= 0 && stops[leg][1] >= 0 && stops[leg][0] < this.episode.height && stops[leg][1] < width;
      if (!inside || (leg && cell === cells[leg - 1]) || (leg === 1 && cell === this.cell(turn))) return;
      // Blown back to where it stood, it meets what that tile has become since.
      var board = leg === 2 && cell === this.cell(turn) ? this.boards[turn + 1] : this.boards[turn];
      if (leg === 2 && cell === this.cell(turn) && !+this.side.winds[turn]) return;
      var deed = MET[words.roles[board[cell]]];
      if (deed) passed.push(deed);
    }, this);
    return passed;
  };

  // What turn `turn` − 1 has brought, or what the policy is about to do, in words.
  Side.prototype.story = function (turn) {
    var advice = this.names[this.advised(Math.min(turn, this.turns))];
    advice = advice ? ", the thought says the " + advice : "";
    if (turn === 0) return "about to begin" + (this.episode.places ? ", " + this.names[this.cell(0)] : "") + advice;
    turn = Math.min(turn, this.turns);
    var last = turn - 1, from = this.position(last), middle = this.midpoint(last);
    var stood = from[0] === middle[0] && from[1] === middle[1];
    var text = (stood ? "bumped " : "went ") + words.directions[+this.side.actions[last]];
    var wind = +this.side.winds[last];
    if (wind) text += ", blown " + words.directions[wind - 1];
    var met = this.met(last), paid = signed(this.side.rewards[last]);
    if (this.episode.places) text += stood ? ", a closed door" : ", to the " + this.names[this.cell(turn)];
    else if (stood && !wind) text += ", a wall";
    text += met.length > 1 ? ", " + met.join(" and ") + ", " + paid + " together" :
      met.length ? ", " + met[0] + " " + paid : ", reward " + paid;
    text += ", return so far " + signed(this.returns[turn]);
    return turn === this.turns ? text + ", the end" : text + advice;
  };

  // Builds the table of a board once; the cells in reading order.
  function build(table, side) {
    var body = make("tbody"), cells = [];
    for (var row = 0; row < side.episode.height; row++) {
      var line = make("tr");
      for (var column = 0; column < side.episode.width; column++) {
        var cell = make("td"), tile = sprite(0, " ");
        cell.appendChild(tile);
        line.appendChild(cell);
        cells.push(cell);
      }
      body.appendChild(line);
    }
    table.replaceChildren(make("caption", "unseen", "Board, row by row"), body);
    return cells;
  }

  function board(frame, table, cells, side, turn) {
    turn = Math.min(turn, side.turns);
    var at = side.cell(turn), map = side.episode.places;
    table.className = map ? "map" : "";
    cells.forEach(function (cell, index) {
      var role = side.boards[turn][index], tile = cell.firstChild, label = side.labels[index];
      var seen = !side.side.seen || side.side.seen[index] <= turn;
      var name = side.tileName(index, turn) + (seen ? "" : ", not seen yet") + (index === at ? ", the agent is here" : "");
      cell.className = words.roles[role] + (seen ? "" : " hidden") + (index === at ? " here" : "") +
        (side.side.thought.indexOf(index) < 0 ? "" : " thought") + (index === side.advised(turn) ? " advised" : "") +
        (map && index === side.cell(0) ? " start" : "");
      place(tile, label === undefined ? side.episode.tileMap[role] : label);
      tile.classList.toggle("blank", !!map && label === undefined);
      tile.setAttribute("aria-label", name);
      tile.title = name;
      while (cell.childNodes.length > 1) cell.removeChild(cell.lastChild);
      if (label !== undefined && role) {
        cell.appendChild(sprite(side.episode.tileMap[role], ""));
        cell.lastChild.classList.add("mark");
      }
      if (index === at) {
        cell.appendChild(sprite(words.agent, ""));
        cell.lastChild.classList.add("agent");
      }
    });
    var old = frame.querySelector("svg");
    if (old) frame.removeChild(old);
    frame.appendChild(way(side, turn));
  }

  // Points of a move: straight, or as the corridors of a map run, half of the rows, then the columns, then the rest.
  function corners(from, to) {
    if (from[0] === to[0] || from[1] === to[1]) return [from, to];
    var half = (from[0] + to[0]) / 2;
    return [from, [half, from[1]], [half, to[1]], to];
  }

  // The way so far: moves as lines, the wind's pushes dashed.
  function way(side, turn) {
    var svg = draw("svg", {
      viewBox: "0 0 " + side.episode.width + " " + side.episode.height, "class": "way", "aria-hidden": "true"
    });
    for (var at = 0; at < turn; at++) {
      var stops = [side.position(at), side.midpoint(at), side.position(at + 1)];
      for (var leg = 0; leg < 2; leg++) {
        var from = stops[leg], to = stops[leg + 1];
        if (from[0] === to[0] && from[1] === to[1]) continue;
        svg.appendChild(draw("polyline", {
          points: corners(from, to).map(function (point) { return [point[1] + 0.5, point[0] + 0.5]; }).join(" "),
          "class": (leg ? "wind" : "move") + (at === turn - 1 ? " latest" : "")
        }));
      }
    }
    return svg;
  }

  // What the pictures on the boards of an episode mean, of its sides and turns together.
  function legend(list, sides) {
    var episode = sides[0].episode, roles = {}, places = {};
    sides.forEach(function (side) {
      side.boards.forEach(function (board) { board.forEach(function (role) { roles[role] = true; }); });
      Object.keys(side.labels).forEach(function (cell) { places[side.labels[cell]] = true; });
    });
    function item(token, name, className) {
      var element = make("li");
      element.appendChild(sprite(token, ""));
      element.firstChild.classList.add("tile");
      if (className) element.firstChild.classList.add(className);
      element.appendChild(document.createTextNode(name));
      return element;
    }
    var items = [item(words.agent, "the agent, " + words.names[words.agent])];
    Object.keys(roles).map(Number).forEach(function (role) {
      var name = words.roles[role], token = episode.tileMap[role];
      if (episode.places && !MET[name]) return; // a map names its tiles instead
      items.push(item(token, name.charAt(0).toUpperCase() + name.slice(1) + ", " + words.names[token], name));
    });
    Object.keys(places).map(Number).forEach(function (token) {
      var door = token - words.moves;
      items.push(item(token, door >= 0 && door < 4 ? words.directions[door] + " door" : words.names[token]));
    });
    [["thought", "the thought names it"], ["thought advised", "the door that it names now"]].forEach(function (sign) {
      if (!sides.some(function (side) { return side.side.thought.length; })) return;
      var element = make("li");
      element.appendChild(make("span", "tile " + sign[0]));
      element.appendChild(document.createTextNode(sign[1]));
      items.push(element);
    });
    list.replaceChildren.apply(list, items);
  }

  function row(label, sprites) {
    var element = make("span");
    element.appendChild(make("span", "label", label));
    sprites.forEach(function (token) { element.appendChild(sprite(token, words.names[token])); });
    if (!sprites.length) element.appendChild(make("span", "muted", "nothing more"));
    return element;
  }

  function reads(element, side, turn) {
    var length = side.side.observations.length / side.turns;
    element.replaceChildren(row("Reads", side.side.observations.slice(turn * length, (turn + 1) * length)));
    var plan = side.side.plan, door = side.labels[side.advised(turn)];
    if (!plan.length) return;
    element.prepend(row("Plan", plan));
    // What it heeds now: the last time that it names the room, and the door before.
    for (var at = door === undefined ? 0 : plan.length - 1; at > 0; at--) {
      if (plan[at] !== side.labels[side.cell(turn)] || plan[at - 1] !== door) continue;
      [at, at - 1].forEach(function (index) { element.firstChild.children[index + 1].classList.add("now"); });
      break;
    }
  }

  function chances(list, side, turn) {
    list.replaceChildren();
    words.directions.forEach(function (name, action) {
      var over = turn >= side.turns, chosen = !over && +side.side.actions[turn] === action;
      var share = over || !side.side.probabilities ? null : side.side.probabilities[4 * turn + action] / 10;
      list.appendChild(bar(words.moves + action, name, share, chosen, "chosen"));
    });
  }

  // A share of 100 as a bar with its picture, name and number; null: there is none.
  function bar(token, name, share, chosen, mark) {
    var item = make("li", chosen ? "chosen" : ""), line = make("span", "bar");
    item.appendChild(sprite(token, ""));
    item.appendChild(make("span", "name", name));
    line.setAttribute("aria-hidden", "true");
    line.appendChild(make("span", "fill"));
    line.firstChild.style.width = (share || 0) + "%";
    item.appendChild(line);
    item.appendChild(make("span", "share", share === null ? "–" : Math.round(share) + " %"));
    item.appendChild(make("span", "mark", chosen ? mark : ""));
    return item;
  }

  // Whose deeds these are most likely, by all that was said and done so far, and what it calls itself.
  function personas(element, side, turn, list) {
    element.replaceChildren();
    element.hidden = !side.side.beliefs;
    if (element.hidden) return;
    var badges = list.map(function (persona) { return persona.badge; }), name = badges.indexOf(side.side.plan[0]);
    var items = list.map(function (persona, index) {
      var share = side.side.beliefs[list.length * Math.min(turn, side.turns) + index] / 10;
      return bar(persona.badge, persona.name, share, index === name, "its name");
    });
    element.replaceChildren.apply(element, [make("li", "label", "Acts so far like")].concat(items));
  }

  // `valued`: whether either side has a trained value head; both tell the same facts, so that they can be compared.
  function fortune(list, side, turn, valued) {
    var at = Math.min(turn, side.turns), over = turn >= side.turns, facts = [
      ["Return so far", signed(side.returns[at])],
      ["Last reward", at ? signed(side.side.rewards[at - 1]) : "–"]
    ];
    if (valued) {
      var value = side.side.values;
      facts.push(["Value: the return it expects", !value ? "not trained yet" : over ? "–" : signed(value[turn])]);
    }
    list.replaceChildren();
    facts.forEach(function (fact) {
      var group = make("div");
      group.appendChild(make("dt", "", fact[0]));
      group.appendChild(make("dd", fact[1] === "not trained yet" ? "muted" : "", fact[1]));
      list.appendChild(group);
    });
  }

  // A small line chart with a mark at the turn. Every side has the same range, so that they can be compared.
  function chart(label, values, range, turns, turn) {
    var width = 320, height = 84, left = 44, right = 8, top = 12, bottom = 12;
    var low = Math.min(0, range[0]), high = Math.max(0, range[1]), span = high - low || 1;
    function x(index) { return left + index / Math.max(turns, 1) * (width - left - right); }
    function y(value) { return top + (high - value) / span * (height - top - bottom); }
    var points = values.map(function (value, index) { return x(index).toFixed(1) + "," + y(value).toFixed(1); });
    var at = Math.min(turn, values.length - 1), figure = make("figure", "chart");
    var svg = draw("svg", { viewBox: "0 0 " + width + " " + height, role: "img" });
    svg.setAttribute("aria-label", label + ", turn by turn: " +
      values.map(function (value) { return signed(value); }).join(", "));
    svg.appendChild(draw("line", { x1: left, x2: width - right, y1: y(0), y2: y(0), "class": "zero" }));
    // Its scale: the least, the most, and 0 where there is room between.
    [low, high, 0].forEach(function (value, index) {
      if (index === 2 && (Math.abs(y(0) - y(low)) < 14 || Math.abs(y(0) - y(high)) < 14)) return;
      if (index === 1 && high === low) return;
      svg.appendChild(
        draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", "class": "tick" }, signed(value)));
    });
    svg.appendChild(draw("line", { x1: x(at), x2: x(at), y1: 2, y2: height - 2, "class": "now" }));
    svg.appendChild(draw("polyline", { points: points.join(" "), "class": "whole" }));
    svg.appendChild(draw("polyline", { points: points.slice(0, at + 1).join(" "), "class": "line" }));
    svg.appendChild(draw("circle", { cx: x(at), cy: y(values[at]), r: 4, "class": "dot" }));
    figure.appendChild(make("figcaption", "", label));
    figure.appendChild(svg);
    return figure;
  }

  window.emojimazeBoard = {
    Side: Side, build: build, board: board, reads: reads, chances: chances, personas: personas, fortune: fortune,
    chart: chart, legend: legend
  };
})();
