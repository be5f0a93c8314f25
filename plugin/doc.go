// Package plugin serves a graph driver to Docker Engines that load such drivers from other processes: Docker Engine
// 1.9 to 26, in experimental mode. It has the types and the handler of Docker's helper library for this protocol, a
// [Driver] over any graphdriver.Driver ([NewAdapter]), and the socket ([Listen]).
//
// # The protocol
//
// The engine is the client. It finds the plugin by its name, as a socket or a file that names a socket ([SocketPath],
// [WriteSpec]). It sends requests of HTTP/1.1:
//
//  1. POST /Plugin.Activate, whose answer says that this is a graph driver
//  2. POST /GraphDriver.Init, once
//  3. the other methods of [Driver], in parallel, each with its arguments as a JSON object
//
// Two methods stream a tar: the answer to Diff is a tar, and so is the body of ApplyDiff, whose arguments are in the
// query of the URL.
//
// A method that fails is answered with status 500 and {"Err": text}. An invalid request is answered with a status of
// 400 to 417 and the same: another HTTP method than POST, an unknown path, JSON of the wrong form, a missing id. If a
// diff fails after its first bytes, the connection is cut. So the engine sees a broken body and never a shortened
// tar.
//
// # Restarts
//
// An engine that stops calls Cleanup, and Init when it starts again. An engine that was killed only calls Init. It
// does not know of a restart of the plugin, and does not call Init then. So another Init ends the operations of the
// former engine. And an [Adapter] can keep the arguments of Init in a file, with which a new process goes on
// ([AdapterOptions.StateFile]).
package plugin
