// Package image imports images into layers and exports layers as images.
//
// An image is a chain of layer tars and a config (OCI image-spec, config.md). Importing one makes a layer
// of the driver for each of its layer tars, named by the hexadecimal digits of its chain ID, so that
// images with a common base share its layers. A small record per image, kept outside the layers, holds
// the config, and next to it is what is needed to give each layer tar back byte for byte. Nothing about
// layers is decided from these records: they are there so that an image that was imported can be exported
// as the same image.
//
// Images come from, and go to, OCI layouts (image-layout.md; a directory or a tar), the archives of
// docker save, registries, and as a source only plain tars of a root filesystem. What they hold is not
// trusted: every digest is checked, documents have a size limit, and archives cannot name anything outside
// of themselves.
package image
