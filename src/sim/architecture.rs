//! The map in `ARCHITECTURE.md` against the manifests: imports point downwards only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The floor of each room, from the first code block of the map; 0 is the top.
fn floors() -> BTreeMap<String, usize> {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let block = map.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the map has a block of rooms");
    let rooms =
        block.lines().enumerate().flat_map(|(floor, line)| line.split('|').map(move |room| (room.trim().to_owned(), floor)));
    rooms.collect()
}

/// The rooms that a room's manifest names, dev-dependencies apart.
fn imports(room: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join("src").join(room).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("").to_owned();
    let rooms = dependencies.lines().filter_map(|line| line.strip_prefix("garage-")?.split('.').next().map(str::to_owned));
    rooms.collect()
}

#[test]
fn every_room_is_on_the_map_and_every_room_on_the_map_exists() {
    let mut rooms: Vec<String> =
        fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    rooms.sort();
    assert_eq!(rooms, floors().into_keys().collect::<Vec<_>>());
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for room in rooms {
        assert!(map.contains(&format!("### {room}\n")), "the room {room} has no paragraph");
    }
}

#[test]
fn imports_point_downwards_only() {
    let floors = floors();
    for (room, floor) in floors.iter().filter(|(room, _)| *room != "sim") {
        for import in imports(room) {
            assert!(floors[&import] > *floor && import != "sim", "{room} must not see {import}");
        }
    }
}
