# `nix-build` makes the release binary: result/bin/garage.
{ pkgs ? import <nixpkgs> { } }:

pkgs.callPackage ./nix/package.nix { }
