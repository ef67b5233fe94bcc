"""Label archives of other projects: reading them into stores, writing them from stores."""
