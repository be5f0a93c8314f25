// Package daemon implements `cowshed serve`: containerd's snapshotter and differ behind a socket, a graph driver
// plugin for Docker Engines that have those, health and metrics.
//
// It has everything of its own: volumes and metadata below <root>/containerd, apart from those of the command, and
// those of the plugin in the engine's data root. A lock in the root keeps a second daemon away, and no other program.
package daemon
