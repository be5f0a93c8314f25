// Package migrate moves the graph roots of other programs into Cowshed: their layers, images and containers.
//
// A Source reads an old root, and a Target makes the same things in Cowshed. Neither knows about the other. A Migration
// plans, runs, verifies and undoes the way from one to the other. It keeps a journal next to the target. So an
// interrupted run goes on where it stopped. Undo removes the things that the run has made, and nothing else.
//
// A source is not trusted: it may be damaged, or made by an attacker. Readers bound the size of files, follow no symbolic
// link, and leave the root nowhere. A thing that cannot be moved is a Problem of that layer, image or container alone,
// and the rest comes along.
package migrate
