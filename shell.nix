# `nix-shell` gives the tools that building and testing need.
{ pkgs ? import <nixpkgs> { } }:

pkgs.mkShell {
  inputsFrom = [ (import ./default.nix { inherit pkgs; }) ];

  packages = with pkgs; [
    cargo-deny
    clippy
    curl
    nodejs
    python3
    rclone
    restic
    rustfmt
    s3cmd
    shellcheck
  ];
}
