//! Breadth first, exact states, shortest traces; then two questions to the whole graph: does every
//! run come to an end by itself, and does the guest keep its memory if that lives?

use crate::bounds::Bounds;
use crate::death::{first, next};
use crate::store::Store;
use crate::world::World;

/// What was found.
pub struct Report {
    pub states: usize,
    pub edges: usize,
    /// Not everything was explored.
    pub cut_off: bool,
    /// The shortest way to something forbidden.
    pub broken: Option<(&'static str, Vec<String>)>,
    /// A state from which no end is reached by itself.
    pub stuck: Option<Vec<String>>,
    /// States in which the memory lives, but is lost all the same; and one of them that is not
    /// on the list of those that are known.
    pub losses: usize,
    pub unknown_loss: Option<Vec<String>>,
}

impl Report {
    /// The first thing that is not as it must be.
    pub fn found(&self) -> Option<(&'static str, &[String])> {
        let stuck = self.stuck.as_deref().map(|t| ("no end is reached", t));
        let lost = self.unknown_loss.as_deref().map(|t| ("living memory is lost", t));
        let broken = self.broken.as_ref().map(|(what, t)| (*what, t.as_slice()));
        broken.or(stuck).or(lost)
    }
}

/// What the questions need to know of a world.
#[derive(Clone, Copy)]
struct Facts {
    ended: bool,
    runs: bool,
    lives: bool,
    inherent: bool,
    colds: u8,
}

impl Facts {
    fn of(world: &World, bounds: &Bounds) -> Self {
        Self {
            ended: world.ended(bounds),
            runs: world.runs(),
            lives: world.memory_lives(),
            inherent: world.inherent_loss(),
            colds: world.rest.colds,
        }
    }
}

pub struct Graph {
    pub store: Store,
    /// How each was reached first.
    from: Vec<u32>,
    facts: Vec<Facts>,
    /// Where what happens by itself leads; for each world, where its edges begin.
    edges: Vec<u32>,
    begins: Vec<usize>,
}

fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap()
}

impl Graph {
    fn new() -> Self {
        Self { store: Store::new(), from: vec![], facts: vec![], edges: vec![], begins: vec![] }
    }

    /// The number of a world, if it is new.
    fn add(&mut self, world: &World, before: usize, bounds: &Bounds) -> (usize, bool) {
        let (number, fresh) = self.store.number(world, before);
        if fresh {
            self.from.push(short(before));
            self.facts.push(Facts::of(world, bounds));
        }
        (number, fresh)
    }

    fn trace(&self, bounds: &Bounds, at: usize) -> Vec<String> {
        let mut steps = Vec::new();
        let mut here = at;
        while here != 0 {
            let before = self.from[here] as usize;
            let mut found = Vec::new();
            next(&self.store.world(before), bounds, &mut found);
            let step = found.iter().find(|(_, w)| self.store.find(w) == Some(here));
            steps.push(step.map_or_else(|| "?".to_owned(), |(cause, _)| format!("{cause:?}")));
            here = before;
        }
        steps.reverse();
        steps.push(self.store.world(at).to_string());
        steps
    }

    /// States from which one that is `good` is reached by itself, along edges that are `open`.
    fn reach(
        &self,
        good: impl Fn(&Facts) -> bool,
        open: impl Fn(&Facts, &Facts) -> bool,
    ) -> Vec<bool> {
        let count = self.facts.len();
        let end = |at: usize| self.begins.get(at + 1).copied().unwrap_or(self.edges.len());
        let mut begins = vec![0_usize; count + 1];
        for to in &self.edges {
            begins[*to as usize + 1] += 1;
        }
        for at in 0..count {
            begins[at + 1] += begins[at];
        }
        let mut filled = begins.clone();
        let mut back = vec![0_u32; self.edges.len()];
        for at in 0..count {
            for to in &self.edges[self.begins[at]..end(at)] {
                let place = &mut filled[*to as usize];
                back[*place] = short(at);
                *place += 1;
            }
        }
        let mut reached: Vec<bool> = self.facts.iter().map(good).collect();
        let mut todo: Vec<usize> = (0..count).filter(|at| reached[*at]).collect();
        while let Some(at) = todo.pop() {
            for before in &back[begins[at]..begins[at + 1]] {
                let before = *before as usize;
                if !reached[before] && open(&self.facts[before], &self.facts[at]) {
                    reached[before] = true;
                    todo.push(before);
                }
            }
        }
        reached
    }
}

/// Explores everything within `bounds`, until the first forbidden state.
pub fn explore(bounds: &Bounds) -> Report {
    graph(bounds).0
}

/// The same, and what was seen.
pub fn graph(bounds: &Bounds) -> (Report, Graph) {
    let mut graph = Graph::new();
    graph.add(&first(bounds), 0, bounds);
    let mut report = Report {
        states: 0,
        edges: 0,
        cut_off: false,
        broken: None,
        stuck: None,
        losses: 0,
        unknown_loss: None,
    };
    let mut at = 0;
    let mut found = Vec::new();
    while at < graph.store.len() && !report.cut_off {
        graph.begins.push(graph.edges.len());
        next(&graph.store.world(at), bounds, &mut found);
        for (cause, world) in found.drain(..) {
            report.edges += 1;
            let (to, fresh) = graph.add(&world, at, bounds);
            let new_edges = &graph.edges[graph.begins[at]..];
            if to != at && cause.is_free() && !new_edges.contains(&short(to)) {
                graph.edges.push(short(to));
            }
            if let (Some(what), true) = (world.rest.broken, fresh) {
                report.broken = Some((what, graph.trace(bounds, to)));
                report.states = graph.store.len();
                return (report, graph);
            }
        }
        at += 1;
        report.cut_off = graph.store.len() > bounds.states;
    }
    report.states = graph.store.len();
    if !report.cut_off {
        ask_the_graph(&graph, bounds, &mut report);
    }
    (report, graph)
}

fn ask_the_graph(graph: &Graph, bounds: &Bounds, report: &mut Report) {
    // With one direction cut for ever, only what must never happen can be asked.
    if bounds.cut.is_some() {
        return;
    }
    let ends = graph.reach(|f| f.ended, |_, _| true);
    report.stuck = ends.iter().position(|ok| !ok).map(|at| graph.trace(bounds, at));
    let keeps = graph.reach(|f| f.runs, |before, after| before.colds == after.colds);
    for (at, facts) in graph.facts.iter().enumerate() {
        if facts.lives && !keeps[at] {
            report.losses += 1;
            if report.unknown_loss.is_none() && !facts.inherent {
                report.unknown_loss = Some(graph.trace(bounds, at));
            }
        }
    }
}
