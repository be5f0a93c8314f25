// Package harness runs real container daemons for tests, each test's own: containerd, a registry, Cowshed, and Docker
// Engine in the version of today and in Debian's with graph driver plugins. scripts/daemons.sh builds or unpacks
// them.
//
// A [Host] is the part of the machine that belongs to one test. Daemons started on it are stopped when the test ends.
// The test fails if a process, mount, loop device or cgroup of them is left. Nothing outside of it is changed: no
// network interface, no rule of a firewall, no directory of the system. [Outside] gives the same to the benchmarks,
// which are a program.
package harness
