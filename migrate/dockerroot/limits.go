package dockerroot

// Bounds of the files and lists of a root. Docker stays far below.
const (
	maxDrivers      = 1 << 10
	maxEntries      = 1 << 18 // layers, images or containers
	maxDepth        = 1 << 10 // layers of an image; Docker allows 125
	maxLine         = 4 << 10 // a file with an ID or a number
	maxParents      = 1 << 20 // a file with the IDs of all layers below
	maxConfig       = 8 << 20 // the configuration of an image or of a container
	maxConfigs      = 1 << 29 // the configurations of all images
	maxRepositories = 64 << 20
	maxParts        = 1 << 36 // all of a layer's tar besides the data of its files
)
