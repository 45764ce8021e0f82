//! Breadth first, exact states, shortest traces; then two questions to the whole graph: does the
//! guest always run again, and with its memory if that lives?

use std::collections::HashMap;
use std::rc::Rc;

use crate::events::{Cause, first, next};
use crate::world::{Bounds, World};

/// What was found.
pub struct Report {
    pub states: usize,
    pub edges: usize,
    /// Not everything was explored.
    pub cut_off: bool,
    /// The shortest way to something forbidden.
    pub broken: Option<(&'static str, Vec<String>)>,
    /// A state from which the guest never runs again by itself.
    pub stuck: Option<Vec<String>>,
    /// States in which the memory lives, but is lost all the same; and one of them that is not
    /// on the list of those that are known.
    pub losses: usize,
    pub unknown_loss: Option<Vec<String>>,
}

impl Report {
    /// The first thing that is not as it must be.
    pub fn found(&self) -> Option<(&'static str, &[String])> {
        let stuck = self.stuck.as_deref().map(|t| ("the guest never runs again", t));
        let lost = self.unknown_loss.as_deref().map(|t| ("living memory is lost", t));
        let broken = self.broken.as_ref().map(|(what, t)| (*what, t.as_slice()));
        broken.or(stuck).or(lost)
    }
}

struct Graph {
    worlds: Vec<Rc<World>>,
    /// How each was reached first.
    from: Vec<Option<(u32, Cause)>>,
    /// Without faults.
    edges: Vec<(u32, u32)>,
}

impl Graph {
    fn trace(&self, at: usize) -> Vec<String> {
        let mut steps = Vec::new();
        let mut here = at;
        while let Some((before, cause)) = self.from[here] {
            steps.push(format!("{cause:?}"));
            here = before as usize;
        }
        steps.reverse();
        steps.push(format!("{:?}", self.worlds[at]));
        steps
    }

    /// States from which, without a fault, one can be reached where the guest runs.
    fn reach_a_run(&self, with_memory: bool) -> Vec<bool> {
        let mut back: Vec<Vec<u32>> = vec![Vec::new(); self.worlds.len()];
        for &(a, b) in &self.edges {
            let same = self.worlds[a as usize].colds == self.worlds[b as usize].colds;
            if same || !with_memory {
                back[b as usize].push(a);
            }
        }
        let runs = |w: &Rc<World>| w.hosts.iter().any(crate::world::Host::runs);
        let mut good: Vec<bool> = self.worlds.iter().map(runs).collect();
        let mut todo: Vec<usize> = (0..good.len()).filter(|i| good[*i]).collect();
        while let Some(at) = todo.pop() {
            for &before in &back[at] {
                if !std::mem::replace(&mut good[before as usize], true) {
                    todo.push(before as usize);
                }
            }
        }
        good
    }
}

/// Explores everything within `bounds`, until the first forbidden state. `known` says which
/// losses of memory are inherent.
pub fn explore(bounds: &Bounds, known: fn(&World) -> bool) -> Report {
    let start = Rc::new(first(bounds));
    let mut index: HashMap<Rc<World>, u32> = HashMap::from([(Rc::clone(&start), 0)]);
    let mut graph = Graph { worlds: vec![start], from: vec![None], edges: vec![] };
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
    while at < graph.worlds.len() {
        let here = Rc::clone(&graph.worlds[at]);
        let number = u32::try_from(at).unwrap();
        for (cause, world) in next(&here, bounds) {
            report.edges += 1;
            let fresh = u32::try_from(graph.worlds.len()).unwrap();
            let to = match index.get(&world) {
                Some(known) => *known,
                None => {
                    let world = Rc::new(world);
                    index.insert(Rc::clone(&world), fresh);
                    graph.from.push(Some((number, cause)));
                    graph.worlds.push(world);
                    fresh
                }
            };
            if to != number && !cause.is_fault() {
                graph.edges.push((number, to));
            }
            if let (Some(what), true) = (graph.worlds[to as usize].broken, to == fresh) {
                report.broken = Some((what, graph.trace(to as usize)));
                report.states = graph.worlds.len();
                return report;
            }
        }
        at += 1;
        if graph.worlds.len() > bounds.states {
            report.cut_off = true;
            break;
        }
    }
    report.states = graph.worlds.len();
    if !report.cut_off {
        ask_the_graph(&graph, known, &mut report);
    }
    report
}

fn ask_the_graph(graph: &Graph, known: fn(&World) -> bool, report: &mut Report) {
    let runs_again = graph.reach_a_run(false);
    report.stuck = runs_again.iter().position(|ok| !ok).map(|at| graph.trace(at));
    let keeps_memory = graph.reach_a_run(true);
    for (at, world) in graph.worlds.iter().enumerate() {
        if world.memory_lives() && !keeps_memory[at] {
            report.losses += 1;
            if report.unknown_loss.is_none() && !known(world) {
                report.unknown_loss = Some(graph.trace(at));
            }
        }
    }
}
