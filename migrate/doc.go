// Package migrate moves the graph roots of other programs into Cowshed: their layers, images and containers.
//
// A Source reads an old root, and a Target makes the same things in Cowshed. Neither knows the other. A Migration plans,
// runs, verifies and undoes the way from one to the other. It keeps a journal next to the target, so that an
// interrupted run goes on where it stopped, and undo removes what the run has made and nothing else.
//
// A source is not trusted: it may be damaged, or made by an attacker. Readers bound what they read, follow no symbolic
// link, and leave the root nowhere. What cannot be moved is a Problem of the one layer, image or container, and the
// rest comes along.
package migrate
