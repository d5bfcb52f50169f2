"""Where does RL stop selecting personas and begin to change them?"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from agents.runs import Run
from analysis import measures, transitions
from analysis.figures.panels import Areas, Curve, Curves, Panel, Rows
from analysis.measure import ends
from analysis.measures.course import stretch
from ground.estimates import Estimate
from studies.study import Options, Results, Study, ask, by_base, of

_ROOMS = (
    *("ppo", "slow", "shuffled", "grpo", "psr", "nsr", "rejection", "sft_alice", "sft_all", "name_only"),
    *("exploit", "style", "slow_poor", "slow_rich", "charged", "charged_poor"),
)
ARMS = {name: f"rooms/{name}" for name in _ROOMS}
ARMS |= {"dull": "dull/ppo", "dull_slow": "dull/slow", "maze": "maze/spoken", "maze_shown": "maze/shown"}
WEAK, MIDDLE = 0.05, 0.3
"""KL from the base, nats per episode, at which RL is called weak, and at which arms are compared."""
OTHERWISE = (0.03, 0.1)
"""KL at which RL might as well be called weak."""
FALLS = "share of selection, weak less strong RL"
SPENDS = "KL of PPO beyond shuffled rewards, over the KL needed"
LOST = 0.2
"""KL per episode beyond which a persona has not survived: .05 nats for each of some four moves."""
LAW = ("slow", "slow_poor", "slow_rich")
"""Arms of the same bases that differ in their town's prior, and so in what personas explain of the reward."""
AT_REST = ("charged", "charged_poor")
"""Arms of which the end alone is asked about."""


def measure(runs: Mapping[str, Run], options: Options) -> Results:
    """The ledger of every arm along its training, and what is asked of it."""
    ledgers = {arm: _ledger(run, options, ends(run) if arm in AT_REST else stretch(run)) for arm, run in runs.items()}
    titles = STUDY.titles()
    each: dict[str, Estimate] = {}
    ppo, shuffled, sft = ledgers["ppo"], ledgers["shuffled"], ledgers["sft_alice"]

    base = ppo.isel(checkpoint=0)
    scripts = runs["ppo"].summary()["success"]["personas"]
    prior = base["weights"].sel(policy="base")
    learnt = base["told_success"].sel(policy="base")
    scripted = xr.full_like(learnt, 0.0) + xr.DataArray(list(scripts.values()), dims="persona")
    each["variance that personas explain, learnt less scripted"] = of(
        _explained(learnt, prior) - _explained(scripted, prior), "share of the variance of success"
    )
    each["misfit of the base"] = of(base["misfit"], "nats per episode")
    each["success of the base"] = of(base["success"].sel(policy="model"))

    for arm, ledger in ledgers.items():
        end = ledger.isel(checkpoint=-1)
        each[f"KL at the end, {titles[arm]}"] = of(end["whole"], "nats per episode")
        each[f"success at the end, {titles[arm]}"] = of(end["success"].sel(policy="model"), "", "success of the base")
        if arm not in AT_REST:
            low, high = _share(ledger, WEAK)
            each[f"share of selection at KL {WEAK}, at least, {titles[arm]}"] = of(low)
            each[f"share of selection at KL {WEAK}, at most, {titles[arm]}"] = of(high)
        end_low, end_high = (x / end["whole"] for x in (end["low"], end["high"]))
        each[f"share of selection at the end, at least, {titles[arm]}"] = of(end_low)
        each[f"share of selection at the end, at most, {titles[arm]}"] = of(end_high)
        each[f"Larry lost, {titles[arm]}"] = of(end["survival"].sel(persona="Larry"), "nats per episode")
    slow = ledgers.get("slow", ppo)
    weak, strong = _share(slow, WEAK)[0], (ppo["high"] / ppo["whole"]).isel(checkpoint=-1)
    each[FALLS] = of(
        by_base(weak) - by_base(strong), f"slow PPO, at least, at KL {WEAK}, less PPO, at most, at its end"
    )
    each |= {f"{FALLS}, weak at KL {nats}": of(by_base(_share(slow, nats)[0]) - by_base(strong)) for nats in OTHERWISE}
    for side, name, bound in ((0, "low", "at least"), (1, "high", "at most")):
        end = (ppo[name] / ppo["whole"]).isel(checkpoint=-1)
        each[f"{FALLS}, both {bound}"] = of(by_base(_share(slow, WEAK)[side]) - by_base(end))
    low, high = transitions.marginal(ppo["low"], ppo["whole"]), transitions.marginal(ppo["high"], ppo["whole"])
    each["transition, at the earliest"] = of(low, "KL from which less than half of what PPO adds is surely selection")
    each["transition, at the latest"] = of(high, "KL from which less than half of what PPO adds can be selection")
    each["KL where selection bends"] = of(transitions.bend(ppo["low"], ppo["whole"])[0], "segmented regression, PPO")
    each["BIC gained by the bend"] = of(transitions.bend(ppo["low"], ppo["whole"])[1])
    matched = _steps(ppo, shuffled)
    each["KL where gratuitous KL exceeds what noise spends"] = of(
        transitions.exceeds(matched["spent"], matched["noise"], matched["whole"]), "PPO"
    )

    worlds = [arm for arm in LAW if arm in ledgers]
    laws, shares = [], []
    for arm in worlds:
        law = by_base(ledgers[arm]["law"].isel(checkpoint=0))
        low, high = (by_base(x) for x in _share(ledgers[arm], WEAK))
        laws.append(law.mean("bound"))
        shares.append((low + high) / 2)
        each[f"share of selection less η², {titles[arm]}"] = of(low - law.sel(bound="at least"))
        each[f"R² less share of selection, {titles[arm]}"] = of(law.sel(bound="at most") - low)
    if len(worlds) > 2:
        foretold, share = _stacked(laws), _stacked(shares)
        spread = foretold - foretold.mean("world")
        slope = (spread * share).sum("world") / (spread**2).sum("world")
        each["slope of the share on what personas explain"] = of(slope)

    needed = ppo["tilt"].isel(checkpoint=-1).sel(price=["needed selection", "needed change"]).sum("price", skipna=False)
    beyond = by_base(ppo["whole"].isel(checkpoint=-1)) - by_base(shuffled["whole"].isel(checkpoint=-1))
    each[SPENDS] = of(beyond / by_base(needed))
    each[f"{SPENDS}, shuffled rewards and all"] = of(by_base(ppo["whole"].isel(checkpoint=-1)) / by_base(needed))
    levels = [by_base(x["success"].sel(policy="model").isel(checkpoint=-1)) for x in (ppo, sft)]
    level = 0.5 * _stacked(levels).min("world") + 0.5 * by_base(base["success"].sel(policy="model"))
    each["KL at equal success, SFT on Alice less PPO"] = of(_when(sft, "whole", level) - _when(ppo, "whole", level))
    each["Larry lost, weak RL"] = of(transitions.at(_larry(slow), slow["whole"], WEAK))
    agreement = ppo["agreement"].isel(checkpoint=-1)
    each["deeds that tell the name, gained by PPO"] = of(agreement.sel(policy="model") - agreement.sel(policy="base"))
    if {"psr", "nsr"} <= ledgers.keys():
        psr, nsr = ledgers["psr"], ledgers["nsr"]
        levels = [by_base(x["success"].sel(policy="model").isel(checkpoint=-1)) for x in (psr, nsr)]
        level = 0.5 * _stacked(levels).min("world") + 0.5 * by_base(base["success"].sel(policy="model"))
        each["entropy of personas at equal success, NSR less PSR"] = of(
            _when(nsr, "spread", level) - _when(psr, "spread", level), "nats"
        )
    if "exploit" in ledgers:
        changes = [1 - by_base(_share(ledgers[arm], MIDDLE)[1]) for arm in ("exploit", "ppo")]
        each[f"share of change at KL {MIDDLE}, exploit less PPO"] = of(changes[0] - changes[1])
    if "dull" in ledgers:
        low = [by_base(_share(ledgers[arm], MIDDLE)[0]) for arm in ("dull", "ppo")]
        each[f"share of selection at KL {MIDDLE}, Alice seldom thinking less often"] = of(low[0] - low[1])
        explained = [by_base(ledgers[arm]["law"].isel(checkpoint=0).mean("bound")) for arm in ("dull", "ppo")]
        each["reward that personas explain, Alice seldom thinking less often"] = of(explained[0] - explained[1])
    if {"maze", "maze_shown"} <= ledgers.keys():
        low = [by_base(_share(ledgers[arm], WEAK)[0]) for arm in ("maze", "maze_shown")]
        each[f"share of selection at KL {WEAK}, EmojiMaze, spoken less shown"] = of(low[0] - low[1])
        each["misfit, EmojiMaze, badge shown"] = of(ledgers["maze_shown"]["misfit"].isel(checkpoint=0))
        law = by_base(ledgers["maze"]["law"].isel(checkpoint=0))
        each["share of selection less η², EmojiMaze"] = of(low[0] - law.sel(bound="at least"))
        each["R² less share of selection, EmojiMaze"] = of(law.sel(bound="at most") - low[0])
    if "charged_poor" in ledgers:
        each["weight of the foretold winner less the next, few Alices"] = of(_winner(ledgers["charged_poor"]))
    if "charged" in ledgers:
        free = ledgers["charged"]
        each["gratuitous share at rest, KL in the reward"] = of(
            (free["tilt"].sel(price="gratuitous") / free["whole"]).isel(checkpoint=-1), "REINFORCE, mean over charges"
        )
    if "name_only" in ledgers:
        named = ledgers["name_only"].isel(checkpoint=-1)
        after = named["named"].sel(kind="what follows it")
        each["KL of what follows the name, PPO of the name alone"] = of(after)
    same = [ledgers[arm] for arm in ("ppo", "grpo", "psr", "nsr") if arm in ledgers]
    if len(same) > 1:
        gain = transitions.apart([(by_base(x["low"]), by_base(x["whole"])) for x in same])
        each["BIC gained by a curve for each algorithm"] = of(gain)
    law = dict(zip(worlds, zip(laws, shares, strict=True), strict=True))
    return Results(each, list(_panels(ledgers, titles, law, each)), _MEANING)


_MEANING = (
    "areas: where KL from the base goes, mean over bases; curves: thin, bases, and bands, 95 % intervals; selection "
    "is known within a range"
)


def _panels(
    ledgers: Mapping[str, xr.Dataset],
    titles: Mapping[str, str],
    law: Mapping[str, tuple[xr.DataArray, xr.DataArray]],
    each: Mapping[str, Estimate],
) -> Iterator[Panel]:
    words, noise = "KL from the base (nats per episode)", ledgers["shuffled"]
    for arm in ("ppo", "grpo", "exploit", "sft_alice"):
        if arm in ledgers:
            ledger = ledgers[arm]
            mean = ledger["account"].mean("member").transpose("checkpoint", "part")
            order = np.argsort(ledger["whole"].mean("member").values)
            areas = {str(part): np.maximum(mean.sel(part=part).values[order], 0) for part in mean["part"].values}
            needed = ledger["tilt"].sel(price=["needed selection", "needed change"]).sum("price", skipna=False)
            lines = {"needed for as much reward": needed.mean("member").values[order]}
            if ledger["stage"].values[-1] == "rl":
                spent = dict(
                    zip(noise["steps"].isel(member=0).values, noise["whole"].mean("member").values, strict=True)
                )
                steps = ledger["steps"].isel(member=0).values[order]
                lines["spent on shuffled rewards"] = np.array([spent.get(step, np.nan) for step in steps])
            whole = ledger["whole"].mean("member").values[order]
            yield Areas(whole, areas, words, f"{titles[arm]}: nats per episode", lines=lines)
    several = [
        arm for arm in ("ppo", "slow", "grpo", "psr", "nsr", "exploit", "sft_alice", "shuffled") if arm in ledgers
    ]
    for bound, how in (("low", "at least"), ("high", "at most")):
        curves = {titles[arm]: _curve(ledgers[arm], ledgers[arm][bound]) for arm in several}
        yield Curves(curves, words, f"selection, {how} (nats per episode)")
    for persona in ("Larry", "Alice"):
        curves = {titles[arm]: _curve(ledgers[arm], ledgers[arm]["survival"].sel(persona=persona)) for arm in several}
        yield Curves(curves, words, f"{persona} lost (nats per episode)", {"not survived": LOST})
    if law:
        points = {
            titles[arm]: Curve(foretold.values[:, None], share.values[:, None])
            for arm, (foretold, share) in law.items()
        }
        yield Curves(points, "reward that personas explain (share)", f"selection at KL {WEAK} (share)", points=True)
    transition = {name: each[name] for name in each if name.startswith(("transition", "KL where"))}
    yield Rows(transition, words)


def _ledger(run: Run, options: Options, names: list[str]) -> xr.Dataset:
    """The ledger of a run at some checkpoints, with what is read of it."""
    ledger = measures.ledger(run, names, **options["ledger"])
    routed = ledger["selection"].sel(scope="maze by maze")
    steps = [int(name.partition("-")[2] or 0) for name in ledger["checkpoint"].values]
    last = run.config.rl.updates or run.config.sft.updates
    steps[-1] = last
    return ledger.assign(
        whole=ledger["kl"].sum("channel"),
        low=routed.sel(bound="at least", drop=True),
        high=routed.sel(bound="at most", drop=True),
        spread=ledger["entropy"].sel(policy="model"),
        steps=xr.zeros_like(ledger["misfit"]) + xr.DataArray(np.array(steps, float), dims="checkpoint"),
    )


def _explained(success: xr.DataArray, prior: xr.DataArray) -> xr.DataArray:
    """Share of the variance of success between personas, [member]."""
    mean = (prior * success).sum("persona")
    return (prior * (success - mean) ** 2).sum("persona") / (mean * (1 - mean))


def _share(ledger: xr.Dataset, level: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Least and greatest share of selection when KL first came to a level."""
    low, high = (transitions.at(ledger[name], ledger["whole"], level) / level for name in ("low", "high"))
    return low, high


def _when(ledger: xr.Dataset, name: str, level: xr.DataArray) -> xr.DataArray:
    """A number by base when success first came to a level, which is by base."""
    success, values = (_pooled(x) for x in (ledger["success"].sel(policy="model"), ledger[name]))
    return transitions.at(values, success, level)


def _stacked(arrays: Sequence[xr.DataArray]) -> xr.DataArray:
    """Arrays of the same bases, float[world, member]."""
    values = np.stack([array.values for array in arrays])
    return xr.DataArray(
        values, dims=("world", "member"), coords={"member": arrays[0]["member"], "base": arrays[0]["base"]}
    )


def _pooled(array: xr.DataArray) -> xr.DataArray:
    """One value for each base, float[checkpoint, member]."""
    return by_base(array).transpose("checkpoint", "member")


def _larry(ledger: xr.Dataset) -> xr.DataArray:
    return ledger["survival"].sel(persona="Larry")


def _steps(arm: xr.Dataset, noise: xr.Dataset) -> xr.Dataset:
    """What an arm spends beyond need, and what noise does, at the checkpoints that both have; by base."""
    steps = [
        int(step)
        for step in arm["steps"].isel(member=0).values
        if step in noise["steps"].isel(member=0).values and step > 0
    ]

    def chosen(ledger, array):
        own = ledger["steps"].isel(member=0).values.tolist()
        return _pooled(array).isel(checkpoint=[own.index(step) for step in steps]).assign_coords(checkpoint=steps)

    spent = chosen(arm, arm["tilt"].sel(price="gratuitous", drop=True))
    return xr.Dataset({"spent": spent, "whole": chosen(arm, arm["whole"]), "noise": chosen(noise, noise["whole"])})


def _winner(ledger: xr.Dataset) -> xr.DataArray:
    """How far the persona that the law foretells is ahead at the end: argmax of w_i E_i exp(λ r), by base.

    Rewards are 0 or 1, λ one over what a nat costs.
    """
    end = ledger.isel(checkpoint=-1)
    cost = next(name for name in end.coords if str(name).endswith("reference_weight"))
    weak = end.isel(member=np.flatnonzero(end[cost] == end[cost].min()))
    reach = 1 + weak["told_success"].sel(policy="base") * np.expm1(np.minimum(1 / weak[cost], 50.0))
    winner = (weak["weights"].sel(policy="base") * reach).argmax("persona")
    weights = weak["weights"].sel(policy="model")
    others = weights.where(weights["persona"] != weights["persona"][winner]).max("persona")
    return weights.isel(persona=winner) - others


def _curve(ledger: xr.Dataset, array: xr.DataArray) -> Curve:
    whole, values = _pooled(ledger["whole"]).values, _pooled(array).values
    order = np.argsort(whole.mean(axis=1), kind="stable")
    return Curve(whole[order], values[order])


STUDY = Study(
    name="persona_transition",
    title="Weak RL selects personas, strong RL changes them",
    claim="Weak RL mostly makes a model speak as another of the personas that it already holds; further RL changes "
    "what those personas do.",
    source="the essay behind this project; arXiv 2506.01347; arXiv 2505.30232",
    method="Bases pretrained on three personas of EmojiRooms-v0, which name themselves before they think and walk, are "
    "trained further in sixteen ways; beside them bases whose Alice seldom thinks, and bases of EmojiMaze. A base that "
    "names itself is exactly the mixture of its own personas, so KL from it splits into selection of a persona, known "
    "within a range, and change within personas. Every arm is followed from its first update on, on held-out mazes.",
    limits=(
        "Three personas in a maze of ten rooms and a model of a hundred thousand parameters; a language model holds "
        "more of them, and none is listed.",
        "Selection is known within a range, since deeds betray only in part whose they are.",
        "What was learnt of the share and of the personas' reward holds where rewards are paid at the goal.",
        "Before these criteria were written one arm had been looked at: PPO at a rate of 1e-3 from eight bases of "
        "eight rooms, of whose KL a twentieth was selection at first and a half at the end. Later PPO at a rate of "
        "3e-4 was looked at, from eight bases of which half did not explore; they were replaced, and nothing of the "
        "criteria was changed but names of estimates. From bases of seed 0 every arm was looked at, on 16 mazes "
        "of each; since then each is measured on 32, for bases of other seeds, and variants are stated.",
        "In EmojiMaze tiles are hidden, so what reward needs is not known there; and a base that is shown badges is no "
        "exact mixture of its personas.",
    ),
    questions=(
        ask(
            "personas_are_there",
            "Does the base hold its personas as they were shown?",
            "What they explain of success is within 0.05 of what the scripts explain; no misfit.",
            "It is not.",
            "variance that personas explain, learnt less scripted > −0.05",
            "variance that personas explain, learnt less scripted < 0.05",
            "misfit of the base < 0.1",
            smallest=0.0,
            gate=True,
        ),
        ask(
            "weak_selects",
            "Is a larger share of KL selection when RL is weak than when it is strong?",
            "The least share at KL 0.05 is above the greatest share at the end of PPO, by 0.1 at least.",
            "It is not.",
            f"{FALLS} > 0",
            smallest=0.1,
            primary=True,
            variants=[
                *(f"{FALLS}, weak at KL {nats}" for nats in OTHERWISE),
                *(f"{FALLS}, both {bound}" for bound in ("at least", "at most")),
            ],
        ),
        ask(
            "weak_law",
            "P1: does weak RL spend on selection what personas explain of the reward?",
            "The share at KL 0.05 lies between η² and R², within 0.1, in three towns and EmojiMaze; slope 0.8 to 1.2.",
            "It lies elsewhere.",
            *(
                f"{name}, {arm} > −0.1"
                for arm in ("PPO, slow", "PPO, slow, few Alices", "PPO, slow, many Alices", "EmojiMaze")
                for name in ("share of selection less η²", "R² less share of selection")
            ),
            "slope of the share on what personas explain > 0.8",
            "slope of the share on what personas explain < 1.2",
            smallest=0.0,
        ),
        ask(
            "spends_more_than_needed",
            "P2: does RL without a KL penalty spend more than three times the KL that its reward needs?",
            "KL of PPO beyond that of shuffled rewards is above three times the needed one.",
            "It is at most that.",
            f"{SPENDS} > 3",
            smallest=0.0,
            leading=True,
            variants=[f"{SPENDS}, shuffled rewards and all"],
        ),
        ask(
            "winner_is_foretold",
            "P3: with few Alices, does the persona win whose prior times reach is greatest?",
            "At the lowest price of a nat the foretold persona weighs more than any other.",
            "Another one weighs more.",
            "weight of the foretold winner less the next, few Alices > 0",
            smallest=0.02,
        ),
        ask(
            "punishment_keeps_personas",
            "P4: does punishment alone keep more of the personas than reward alone, at equal success?",
            "Entropy of personas is higher after NSR than after PSR, by 0.05 nats at least.",
            "It is not.",
            "entropy of personas at equal success, NSR less PSR > 0",
            smallest=0.05,
        ),
        ask(
            "alien_departs_earlier",
            "P5: where a door pays that no persona takes, does change begin at lower KL?",
            "At KL 0.3 the share that no selection explains is larger by 0.1 at least.",
            "It is not.",
            "share of change at KL 0.3, exploit less PPO > 0",
            smallest=0.1,
        ),
        ask(
            "sft_spends_more",
            "P6: does SFT on Alice spend more KL than RL at equal success?",
            "By 0.1 nats at least.",
            "It does not.",
            "KL at equal success, SFT on Alice less PPO > 0",
            smallest=0.1,
        ),
        ask(
            "larry_survives",
            "P7: does Larry survive SFT on Alice and weak RL, and not strong RL?",
            "KL from the base's Larry to the model's is below 0.2 nats per episode after the first two, not after PPO.",
            "It is not.",
            "Larry lost, weak RL < 0.2",
            "Larry lost, SFT on Alice < 0.2",
            "Larry lost, PPO > 0.2",
            smallest=0.0,
        ),
        ask(
            "speaking_selects",
            "P8: at equal KL, is more of it selection where the name is spoken than where nobody says who speaks?",
            "In EmojiMaze the share at KL 0.05 is larger by 0.05 at least.",
            "It is not.",
            "share of selection at KL 0.05, EmojiMaze, spoken less shown > 0",
            smallest=0.05,
        ),
        ask(
            "less_to_select",
            "P10: where personas explain less of the reward, is less of the same KL selection?",
            "With an Alice who seldom thinks the share at KL 0.3 is lower by 0.05 at least.",
            "It is not.",
            "share of selection at KL 0.3, Alice seldom thinking less often < 0",
            smallest=0.05,
        ),
        ask(
            "names_lose_meaning",
            "P9: after strong RL, does the name no longer tell the deeds?",
            "The share of episodes whose deeds tell the name falls by 0.1 at least.",
            "It does not.",
            "deeds that tell the name, gained by PPO < 0",
            smallest=0.1,
        ),
        ask(
            "name_alone_is_selection",
            "Control: does RL of the name alone leave the personas as they are?",
            "KL of what follows the name stays below 0.05 nats per episode.",
            "It does not.",
            "KL of what follows the name, PPO of the name alone < 0.05",
            smallest=0.0,
        ),
        ask(
            "one_curve",
            "Is selection one curve of KL, whatever the algorithm?",
            "Curves of their own for PPO, GRPO, PSR and NSR gain less than 6 of BIC.",
            "They gain more.",
            "BIC gained by a curve for each algorithm < 6",
            smallest=0.0,
        ),
    ),
    arms=ARMS,
    skip={
        "smoke": tuple(arm for arm in ARMS if arm not in ("ppo", "shuffled", "sft_alice")),
        "laptop": (),
    },
    options={
        "smoke": {"ledger": {"mazes": 4, "episodes": 16}},
        "laptop": {"ledger": {"mazes": 32, "episodes": 64}},
        "paper": {"ledger": {"mazes": 64, "episodes": 64}},
    },
    measure=measure,
)
