// Package graphdriver is the interface through which a program keeps container layers. It is Docker's graphdriver
// API, and states the contracts of its drivers.
//
// # Terms
//
// A layer is a complete directory tree with an id. Its own data is kept apart from its parent's, so that a hundred
// layers made from one image cost one image.
//
// An id names a layer within one driver. It is a name, never a path. Every driver accepts ids of at most 128 bytes, of
// letters, digits and any of "_.:-", a letter or digit first. Docker uses 64 hexadecimal digits, with "-init" behind
// them for the layer that prepares a container. Ids that differ in case are different ids. Every driver and every
// method refuses an empty id, ".", "..", ids with a slash or a NUL byte, and ids longer than 255 bytes. They then look
// up nothing and change nothing. Other ids are up to the driver.
//
// A parent is the layer that another one was made from, its child. The child starts as an equal copy of the parent's
// tree at that moment. From then on, changes to one are not seen in the other. The parent "" is the empty tree.
//
// A read-write layer is made by CreateReadWrite: a container writes to it, so a limit on its own data makes sense.
// Layers made by Create hold image content. They are filled once, by ApplyDiff or through Get, and then become
// parents. A driver may seal a layer that has become a parent: its tree then cannot be changed. A layer that was held
// by a Get when its child was made stays writable.
//
// A diff is an uncompressed tar of a layer's changes since another, usually its parent, in the format of image
// layers. Deletions are whiteouts: empty files called ".wh." and the deleted name.
//
// # Life cycle
//
// An image of two layers is pulled, used by a container, and committed to a third layer:
//
//	d.Create("lower", "", nil)
//	d.ApplyDiff("lower", "", lowerTar)
//	d.Create("upper", "lower", nil)
//	d.ApplyDiff("upper", "lower", upperTar)
//
//	d.CreateReadWrite("container", "upper", &graphdriver.CreateOpts{
//		StorageOpt: map[string]string{"size": "10G"},
//	})
//	dir, err := d.Get("container", "") // the container runs in dir
//	d.Put("container")
//
//	tar, err := d.Diff("container", "upper") // the new layer's content
//	io.Copy(registry, tar)
//	tar.Close()
//
//	d.Remove("container")
//	d.Remove("upper") // children go before their parents
//	d.Remove("lower")
//
// When the program ends it calls Cleanup. Layers outlive the driver: New with the same root finds them.
//
// # Errors
//
// If a driver cannot work in a place, [IsDriverNotSupported] is true for its error. Errors about layers are matched
// with errors.Is against those of github.com/containerd/errdefs, and the contract of each method names them:
// ErrNotFound, ErrAlreadyExists, ErrInvalidArgument, ErrFailedPrecondition. No caller has to match an error's text.
//
// A method that fails changes nothing, unless its contract says otherwise.
//
// # Concurrency
//
// All methods of a driver may be called from several goroutines at once, for the same and for different layers. For
// one layer they take effect one after the other: of several calls that create the same id, one succeeds.
//
// # Drivers
//
// A driver makes itself known with [Register], usually from an init function, and is opened with [New]. Package
// graphtest holds a conformance suite that checks the contracts for any driver.
package graphdriver
