// Package plugin serves a graph driver to Docker Engines that load such drivers from other processes:
// Docker Engine 1.9 to 26, in experimental mode. It has the types and the handler of Docker's helper library
// for this protocol, a [Driver] over any graphdriver.Driver ([NewAdapter]), and the socket ([Listen]).
//
// # The protocol
//
// The engine is the client. It finds the plugin by its name, as a socket or a file that names one
// ([SocketPath], [WriteSpec]), and sends requests of HTTP/1.1: POST /Plugin.Activate, to which the answer says
// that this is a graph driver, then POST /GraphDriver.Init once, then the other methods of [Driver] as it
// needs them and in parallel, each with its arguments as a JSON object. Two methods stream a tar: the answer
// to Diff is one, and the body of ApplyDiff is one, its arguments being in the query of the URL.
//
// A method that fails is answered with status 500 and {"Err": text}; a request that is none (another method
// than POST, no such path, JSON that does not fit, an id that is missing) with a status of 400 to 417 and the
// same. Once a diff is on its way there is no status any more: if it fails then, the connection is cut, so
// that the engine sees a broken body and never a shortened tar.
//
// # Who is restarted when
//
// An engine that stops calls Cleanup, and Init when it starts again; one that was killed only calls Init. It
// does not call Init again when the plugin was restarted, nor know that it was. So an [Adapter] ends what the
// engine before has begun when it gets another Init, and can keep what Init said in a file, with which a new
// process goes on ([AdapterOptions.StateFile]).
package plugin
