//! A layered layout: nodes in columns from left to right, long edges led around nodes by way points.

use std::collections::BTreeSet;

/// Space between columns, pixels.
const COLUMN_GAP: i64 = 56;
/// Space between nodes of a column, pixels.
const ROW_GAP: i64 = 20;
/// How often the order within columns is improved.
const SWEEPS: usize = 12;

/// Where everything goes, pixels.
pub(super) struct Layout {
    /// Left top corner of each node.
    pub corners: Vec<(i64, i64)>,
    /// Way points of each edge, from its tail to its head, without the ends.
    pub ways: Vec<Vec<(i64, i64)>>,
    /// Edges that lead backwards.
    pub backward: BTreeSet<usize>,
    /// Width and height of all.
    pub size: (i64, i64),
}

/// A node of the layout, or a way point of an edge.
struct Place {
    layer: usize,
    width: i64,
    height: i64,
    left: Vec<usize>,
    right: Vec<usize>,
    /// Centre, vertically.
    y: i64,
}

/// Lays out nodes of these sizes (width, height) with these edges.
pub(super) fn layout(sizes: &[(i64, i64)], edges: &[(usize, usize)]) -> Layout {
    let backward = backward_edges(sizes.len(), edges);
    let forward = |(index, &(from, to)): (usize, &(usize, usize))| {
        if backward.contains(&index) { (to, from) } else { (from, to) }
    };
    let directed: Vec<(usize, usize)> = edges.iter().enumerate().map(forward).collect();
    let layers = layers(sizes.len(), &directed);
    let mut places: Vec<Place> = sizes.iter().zip(&layers).map(|(&size, &layer)| Place::new(layer, size)).collect();
    let chains: Vec<Vec<usize>> = directed.iter().map(|&(from, to)| chain(&mut places, from, to)).collect();
    let columns = order(&places);
    spread(&mut places, &columns);
    let lefts = column_lefts(&places, &columns);
    let top = places.iter().map(|place| place.y - place.height / 2).min().unwrap_or(0);
    let corner = |place: &Place| {
        let width = columns[place.layer].iter().map(|&it| places[it].width).max().unwrap_or(0);
        (lefts[place.layer] + (width - place.width) / 2, place.y - place.height / 2 - top)
    };
    let corners: Vec<(i64, i64)> = places.iter().take(sizes.len()).map(corner).collect();
    let bottom = places.iter().map(|place| place.y - place.height / 2 + place.height - top).max().unwrap_or(0);
    let right = corners.iter().zip(sizes).map(|(at, size)| at.0 + size.0).max().unwrap_or(0);
    let ways = chains.iter().enumerate().map(|(edge, chain)| {
        let inner = chain.iter().map(|&it| {
            let (x, y) = corner(&places[it]);
            (x, y + places[it].height / 2)
        });
        if backward.contains(&edge) { inner.rev().collect() } else { inner.collect() }
    });
    Layout { corners, ways: ways.collect(), backward: backward.clone(), size: (right, bottom) }
}

impl Place {
    fn new(layer: usize, (width, height): (i64, i64)) -> Self {
        Self { layer, width, height, left: Vec::new(), right: Vec::new(), y: 0 }
    }
}

/// Edges that close a circle, found from the nodes without a way in, in order.
fn backward_edges(count: usize, edges: &[(usize, usize)]) -> BTreeSet<usize> {
    let entered: BTreeSet<usize> = edges.iter().map(|&(_, to)| to).collect();
    let starts = (0..count).filter(|node| !entered.contains(node)).chain(0..count);
    let mut state = vec![0_u8; count];
    let mut backward = BTreeSet::new();
    for start in starts {
        // Depth first, without recursion: a node with the edges that are still to be followed.
        let out = |node: usize| -> Vec<usize> {
            let mut out: Vec<usize> = (0..edges.len()).filter(|&it| edges[it].0 == node).collect();
            out.reverse();
            out
        };
        if state[start] != 0 {
            continue;
        }
        state[start] = 1;
        let mut path = vec![(start, out(start))];
        while let Some((node, open)) = path.last_mut() {
            let Some(edge) = open.pop() else {
                state[*node] = 2;
                path.pop();
                continue;
            };
            let to = edges[edge].1;
            match state[to] {
                0 => {
                    state[to] = 1;
                    path.push((to, out(to)));
                }
                1 => {
                    backward.insert(edge);
                }
                _ => {}
            }
        }
    }
    backward
}

/// Column of each node: behind all that lead to it.
fn layers(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut layer = vec![0; count];
    for _ in 0..count {
        let mut changed = false;
        for &(from, to) in edges.iter().filter(|(from, to)| from != to) {
            if layer[to] < layer[from] + 1 {
                layer[to] = layer[from] + 1;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    layer
}

/// Way points from `from` to `to`, one in each column between them.
fn chain(places: &mut Vec<Place>, from: usize, to: usize) -> Vec<usize> {
    let mut last = from;
    let mut chain = Vec::new();
    for layer in places[from].layer + 1..places[to].layer {
        let next = places.len();
        places.push(Place::new(layer, (0, 2)));
        chain.push(next);
        link(places, last, next);
        last = next;
    }
    link(places, last, to);
    chain
}

fn link(places: &mut [Place], left: usize, right: usize) {
    places[left].right.push(right);
    places[right].left.push(left);
}

/// The places of each column from top to bottom, with few crossings: each goes to the mean place of its neighbours.
fn order(places: &[Place]) -> Vec<Vec<usize>> {
    let count = places.iter().map(|place| place.layer + 1).max().unwrap_or(0);
    let mut columns: Vec<Vec<usize>> = vec![Vec::new(); count];
    places.iter().enumerate().for_each(|(index, place)| columns[place.layer].push(index));
    let mut best = columns.clone();
    let mut fewest = crossings(places, &best);
    for sweep in 0..SWEEPS {
        let forward = sweep % 2 == 0;
        for step in 1..count {
            let layer = if forward { step } else { count - 1 - step };
            let fixed = if forward { layer - 1 } else { layer + 1 };
            let rank = |it: usize| columns[fixed].iter().position(|&other| other == it).unwrap_or(0);
            let neighbours = |it: usize| if forward { &places[it].left } else { &places[it].right };
            let old: Vec<usize> = columns[layer].clone();
            let mut keyed: Vec<(i64, usize, usize)> = old
                .iter()
                .enumerate()
                .map(|(place, &it)| {
                    let ranks: Vec<i64> = neighbours(it).iter().map(|&other| rank(other) as i64 * 1000).collect();
                    let mean = if ranks.is_empty() {
                        place as i64 * 1000
                    } else {
                        ranks.iter().sum::<i64>() / ranks.len() as i64
                    };
                    (mean, place, it)
                })
                .collect();
            keyed.sort_unstable();
            columns[layer] = keyed.into_iter().map(|(_, _, it)| it).collect();
        }
        let crossed = crossings(places, &columns);
        if crossed < fewest {
            fewest = crossed;
            best.clone_from(&columns);
        }
    }
    best
}

/// How many pairs of edges between neighbouring columns cross.
fn crossings(places: &[Place], columns: &[Vec<usize>]) -> usize {
    let mut total = 0;
    for pair in columns.windows(2) {
        let [left, right] = pair else { continue };
        let mut ends: Vec<(usize, usize)> = Vec::new();
        for (place, &it) in left.iter().enumerate() {
            let targets = places[it].right.iter().filter_map(|to| right.iter().position(|other| other == to));
            ends.extend(targets.map(|target| (place, target)));
        }
        for (at, a) in ends.iter().enumerate() {
            total += ends[at + 1..].iter().filter(|b| (a.0 < b.0 && a.1 > b.1) || (a.0 > b.0 && a.1 < b.1)).count();
        }
    }
    total
}

/// Moves places up and down towards their neighbours, in their order and apart.
fn spread(places: &mut [Place], columns: &[Vec<usize>]) {
    for column in columns {
        let mut y = 0;
        for &it in column {
            places[it].y = y + places[it].height / 2;
            y += places[it].height + ROW_GAP;
        }
    }
    for round in 0..24 {
        let forward = round % 2 == 0;
        for step in 0..columns.len() {
            let column = if forward { &columns[step] } else { &columns[columns.len() - 1 - step] };
            let wanted: Vec<i64> = column.iter().map(|&it| wanted(places, it, forward)).collect();
            settle(places, column, &wanted);
        }
    }
}

/// Mean height of the neighbours on one side; of the other where there are none.
fn wanted(places: &[Place], it: usize, left: bool) -> i64 {
    let place = &places[it];
    let (first, second) = if left { (&place.left, &place.right) } else { (&place.right, &place.left) };
    let side = if first.is_empty() { second } else { first };
    let sum: i64 = side.iter().map(|&other| places[other].y).sum();
    if side.is_empty() { place.y } else { sum / side.len() as i64 }
}

/// Puts a column as near as possible to where its places want to be: neighbours that would overlap move as one.
fn settle(places: &mut [Place], column: &[usize], wanted: &[i64]) {
    // Each block: sum of wishes relative to its start, number of places, index of its first.
    let mut blocks: Vec<(i64, i64, usize)> = Vec::new();
    let mut offsets = Vec::with_capacity(column.len());
    let mut offset = 0;
    for (at, &it) in column.iter().enumerate() {
        if at > 0 {
            let before = &places[column[at - 1]];
            offset += before.height - before.height / 2 + places[it].height / 2 + ROW_GAP;
        }
        offsets.push(offset);
        blocks.push((wanted[at] - offset, 1, at));
        while let [.., a, b] = blocks.as_slice() {
            if a.0 * b.1 <= b.0 * a.1 {
                break;
            }
            let merged = (a.0 + b.0, a.1 + b.1, a.2);
            blocks.truncate(blocks.len() - 2);
            blocks.push(merged);
        }
    }
    for (number, &(sum, count, first)) in blocks.iter().enumerate() {
        let end = blocks.get(number + 1).map_or(column.len(), |next| next.2);
        for at in first..end {
            places[column[at]].y = sum.div_euclid(count) + offsets[at];
        }
    }
}

/// Left side of each column.
fn column_lefts(places: &[Place], columns: &[Vec<usize>]) -> Vec<i64> {
    let mut x = 0;
    let left = |column: &Vec<usize>| {
        let left = x;
        x += column.iter().map(|&it| places[it].width).max().unwrap_or(0) + COLUMN_GAP;
        left
    };
    columns.iter().map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apart(sizes: &[(i64, i64)], laid: &Layout) -> bool {
        let rects: Vec<_> =
            laid.corners.iter().zip(sizes).map(|(at, size)| (at.0, at.1, at.0 + size.0, at.1 + size.1)).collect();
        rects
            .iter()
            .enumerate()
            .all(|(index, a)| rects[index + 1..].iter().all(|b| a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1))
    }

    #[test]
    fn a_chain_goes_from_left_to_right_on_one_line() {
        let laid = layout(&[(50, 20), (80, 20), (50, 20)], &[(0, 1), (1, 2)]);
        assert!(laid.corners[0].0 < laid.corners[1].0 && laid.corners[1].0 < laid.corners[2].0);
        assert!(laid.corners.iter().all(|corner| corner.1 == laid.corners[0].1));
        assert!(laid.backward.is_empty());
    }

    #[test]
    fn an_edge_back_is_told() {
        let laid = layout(&[(10, 10), (10, 10), (10, 10)], &[(0, 1), (1, 2), (2, 1)]);
        assert_eq!(laid.backward.into_iter().collect::<Vec<_>>(), [2]);
    }

    proptest! {
        #[test]
        fn nodes_never_overlap(
            sizes in prop::collection::vec((10_i64..200, 10_i64..100), 1..14),
            ends in prop::collection::vec((0_usize..14, 0_usize..14), 0..30),
        ) {
            let count = sizes.len();
            let edges: Vec<_> = ends.into_iter().map(|(a, b)| (a % count, b % count)).filter(|(a, b)| a != b).collect();
            let laid = layout(&sizes, &edges);
            prop_assert!(apart(&sizes, &laid));
            let inside = laid.corners.iter().zip(&sizes).all(|(at, size)| {
                at.0 >= 0 && at.1 >= 0 && at.0 + size.0 <= laid.size.0 && at.1 + size.1 <= laid.size.1
            });
            prop_assert!(inside);
            for (index, (&(from, to), way)) in edges.iter().zip(&laid.ways).enumerate() {
                let ahead = laid.corners[from].0 < laid.corners[to].0;
                prop_assert_eq!(ahead, !laid.backward.contains(&index));
                prop_assert!(way.windows(2).all(|pair| (pair[0].0 < pair[1].0) == ahead));
            }
        }
    }
}
