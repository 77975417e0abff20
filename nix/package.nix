# The garage binary. Needs rustc 1.95 or later, a C compiler (LMDB, zstd, libsodium come as sources of their crates).
{ lib, rustPlatform, pkg-config }:

rustPlatform.buildRustPackage {
  pname = "garage";
  version = (lib.importTOML ../Cargo.toml).workspace.package.version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [ ../Cargo.toml ../Cargo.lock ../clippy.toml ../rustfmt.toml ../src ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ pkg-config ];
  cargoBuildFlags = [ "--bin" "garage" ];

  # script/test runs the tests; they start servers and need client programs.
  doCheck = false;

  meta = {
    description = "Self-hosted, geo-distributed object store with an S3 interface";
    license = lib.licenses.agpl3Only;
    mainProgram = "garage";
  };
}
