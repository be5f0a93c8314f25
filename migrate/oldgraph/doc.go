// Package oldgraph reads the roots of Docker before 0.7, which kept files and records in one place:
//
//	graph/ID/layer        the changes of an image, in the form of aufs
//	graph/ID/json         its record: the parent, the configuration
//	graph/ID/layersize    a number of bytes
//	repositories          the names of images
//	containers/ID/rw      the changes of a container, in the form of aufs
//	containers/ID/config.json
//
// These images have no digests of layers. So the tar of each layer is made of its files, always in the same way, and its
// digest is the diff ID. The configuration of today's form follows from these and from the records of the image and those
// below. So each image has the same ID wherever it comes to.
//
// [Into] moves such a root into a graph driver, as the aufs driver of Docker did with its method Migrate.
package oldgraph
