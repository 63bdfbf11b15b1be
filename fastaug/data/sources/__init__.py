"""Sets that come in other forms than folders of images: written once as encoded files, then indexed like any folder."""
