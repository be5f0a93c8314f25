// Package image imports images into layers and exports layers as images.
//
// An image is a chain of layer tars and a config (OCI image-spec, config.md). Importing an image makes a layer of the
// driver for each of its layer tars, named by the hexadecimal digits of its chain ID. So images with a common base
// share its layers. A small record per image, kept outside the layers, holds the config. Next to it are the data that
// give each layer tar back byte for byte. Nothing about layers is decided from these records: by them an imported
// image can be exported as the same image.
//
// Images come from, and go to, OCI layouts (image-layout.md; a directory or a tar), the archives of docker save, and
// registries. Plain tars of a root filesystem are a source only. Their content is not trusted: every digest is
// checked, documents have a size limit, and archives cannot name anything outside of themselves.
package image
